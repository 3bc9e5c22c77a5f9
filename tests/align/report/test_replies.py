from align.report.replies import (
    MOST,
    REPLY_CHARACTERS,
    WORST,
    compared,
    judged_pairs,
    prompt_text,
    said,
    spread,
    worst_pairs,
)
from align.runs.run_files import Run, StageFiles


def run_of(**stages) -> Run:
    empty = {name: StageFiles(name) for name in ("base", "sft", "pmp", "rm", "ppo")}
    return Run("n", {}, empty | {name: StageFiles(name, **files) for name, files in stages.items()}, {}, [])


def test_replies_stand_side_by_side_with_their_figures():
    line = {
        "prompt": "Q",
        "category": "maths",
        "sft_reply": "a",
        "sft_finished": False,
        "sft_tokens": 7,
        "sft_gold": 0.25,
    }
    line |= {"ppo_reply": "b", "ppo_finished": True, "ppo_gold": 1.5}
    (one,) = compared(run_of(ppo={"evals": [line, {"prompt": "no replies"}]}))
    assert (one.prompt, one.category, one.verdict) == ("Q", "maths", "win")
    assert [(reply.who, reply.text, reply.notes) for reply in one.replies] == [
        ("sft", "a", ["cut off", "tokens 7", "gold 0.25"]),
        ("ppo", "b", ["gold 1.5"]),
    ]


def test_every_category_gets_its_turn():
    rows = [{"category": f"c{index % 5}", "index": index} for index in range(100)]
    shown = spread(rows)
    assert [row["index"] for row in shown] == [at + 5 * turn for at in range(5) for turn in range(4)]
    few = [{"category": "a"}, *({"category": "b"} for _ in range(100))]
    assert [row["category"] for row in spread(few)] == ["a", *(MOST - 1) * ["b"]]
    assert len(spread([{"category": str(index)} for index in range(100)])) == MOST
    assert len(spread([{}] * 100)) == MOST


def test_prompts_as_text_and_as_messages():
    assert prompt_text("a") == "a"
    assert prompt_text([{"role": "user", "content": "a"}]) == "a"
    assert (
        prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, 3])
        == "system: s\nuser: a\n: 3"
    )
    assert prompt_text(None) == ""


def test_samples_of_a_stage():
    sft = [{"prompt": "p", "reply": "r", "reference": "x", "category": ""}, {"prompt": "no reply"}]
    ppo = [{"step": step, "prompt": "p", "reply": str(step), "score": 0.5} for step in range(20)]
    run = run_of(sft={"samples": sft}, ppo={"samples": ppo})
    assert [[reply.who for reply in one.replies] for one in said(run, "sft")] == [["sft", "reference"]]
    assert [one.replies[0].text for one in said(run, "ppo")] == [str(step) for step in range(12, 20)]
    assert said(run, "ppo")[0].replies[0].notes == ["step 12", "score 0.5"]


def test_of_several_looks_the_one_at_the_model_that_is_left_is_shown():
    samples = [{"prompt": "q", "reply": f"{step}-{at}", "step": step} for step in (5, 10, 15) for at in (0, 1)]
    last = run_of(sft={"samples": samples, "summary": {"steps": 15}})
    assert [one.replies[0].text for one in said(last, "sft")] == ["15-0", "15-1"]
    best = run_of(sft={"samples": samples, "summary": {"steps": 15, "best_step": 10}})
    assert [one.replies[0].text for one in said(best, "sft")] == ["10-0", "10-1"]
    assert said(run_of(sft={"samples": []}), "sft") == []


def test_the_tokens_of_a_sample_are_shaded_by_their_kl():
    tokens = [["It", 0.2], [" is", -0.5], ["\x00", 1.5], [" 4", 2.0], ["", -3], ["!", -1.0]]
    (one,) = said(run_of(ppo={"samples": [{"reply": "r", "tokens": tokens, "reply_tokens": 6}]}), "ppo")
    assert one.replies[0].notes == ["reply_tokens 6"]
    assert [(token.text, token.shade) for token in one.replies[0].tokens] == (
        [("It", ""), (" is", "down1"), ("␀", "up2"), (" 4", "up3"), ("", "down3"), ("!", "down2")]
    )
    assert one.replies[0].tokens[1].note == "-0.50 nats"


def test_tokens_that_are_none_or_too_many():
    for value in (5, None, "x", [3], [["a"]], [["a", None]], {"a": 1}):
        (one,) = said(run_of(ppo={"samples": [{"reply": "r", "tokens": value}]}), "ppo")
        assert one.replies[0].tokens == []
    (one,) = said(run_of(ppo={"samples": [{"reply": "r", "tokens": [["x" * 100, 0.0]] * 50}]}), "ppo")
    assert len(one.replies[0].tokens) == REPLY_CHARACTERS / 100


def test_pairs_of_a_reward_stage():
    line = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "chosen_score": 1,
        "rejected_score": 2,
        "tags": ["correctness"],
    }
    (one,) = judged_pairs(run_of(rm={"samples": [line]}), "rm")
    assert (one.verdict, one.category) == ("wrong", "correctness")
    assert [reply.notes for reply in one.replies] == [["score 1"], ["score 2"]]


def test_the_worst_pairs_come_worst_first_with_what_is_known_of_them():
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 0, "rejected_score": at} for at in range(30)
    ]
    rows[29] |= {
        "prompt": "问" * 5000,
        "rejected": "<b>错</b>" * 5000,
        "category": "maths",
        "tags": ["t"],
        "grade": 0.5,
    }
    found = worst_pairs(run_of(rm={"evals": [{"chosen_score": 1}, *rows]}), "rm")
    assert len(found) == WORST
    assert [one.replies[1].notes for one in found[:2]] == [["score 29"], ["score 28"]]
    assert (found[0].category, found[0].verdict) == ("maths, t, grade 0.5", "wrong")
    assert found[0].prompt.startswith("问问") and found[0].prompt.endswith("more characters)")
    assert len(found[0].prompt) < REPLY_CHARACTERS + 100
    assert found[0].replies[1].text.startswith("<b>错") and found[0].replies[1].text.endswith("more characters)")
    assert worst_pairs(run_of(rm={"evals": rows[:1]}), "rm") == []  # equal scores are no reply above the other
