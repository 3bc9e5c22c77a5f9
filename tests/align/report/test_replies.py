from align.report.policy_evaluation import comparisons
from align.report.replies import (
    FIRST,
    REPLY_CHARACTERS,
    ROOM,
    TOKEN_CHARACTERS,
    WORST,
    in_turn,
    judged_pairs,
    message_text,
    said,
    side_by_side,
    worst_pairs,
)
from align.runs.run_files import Run, StageFiles


def run_of(**stages) -> Run:
    empty = {name: StageFiles(name) for name in ("base", "sft", "pmp", "rm", "ppo")}
    return Run("n", {}, empty | {name: StageFiles(name, **files) for name, files in stages.items()}, {}, [])


def shown(*rows, **summary):
    (one,) = comparisons(run_of(ppo={"evals": list(rows), "summary": summary}))
    return side_by_side(one)


def test_replies_stand_side_by_side_with_their_figures():
    line = {"prompt": "Q", "category": "maths", "sft_reply": "a", "sft_finished": False, "sft_tokens": 7}
    line |= {"sft_gold": 0.25, "sft_correct": 0.0, "ppo_correct": 1.0, "ppo_reply": "b", "ppo_finished": True}
    (one,) = shown(line | {"ppo_gold": 1.5, "ppo_reward/brief": 0.5}, {"prompt": "no replies"}).exchanges
    assert (one.prompt, one.category, one.verdict, one.badge) == ("Q", "maths", "win", "PPO won, and is right")
    assert (one.kind, one.change, one.gain) == ("won-right", "wrong, then right", 1.25)
    assert [(reply.who, reply.text, reply.right, reply.notes) for reply in one.replies] == [
        ("SFT", "a", False, ["cut off", "tokens 7", "gold 0.25"]),
        ("PPO", "b", True, ["gold 1.5", "reward/brief 0.5"]),
    ]
    (one,) = shown(line | {"ppo_gold": 1.5, "ppo_correct": 0.0}).exchanges
    assert (one.badge, one.change) == ("PPO won by manners: both wrong", "both wrong")


def test_a_reply_that_several_judged():
    line = {"prompt": "Q", "sft_reply": "a", "ppo_reply": "b"}
    (one,) = shown(line | {"verdicts": {"greedy": [["win", "loss", "win", None]]}}, judged_by="people").exchanges
    assert (one.verdict, one.badge, one.gain) == ("win", "PPO won (2 of 3 judgments)", 1 / 3)
    (one,) = shown(line | {"verdicts": {"greedy": [["win", "loss"]]}}).exchanges
    assert (one.verdict, one.badge) == ("tie", "tie (1 of 2 judgments)")


def test_all_of_an_evaluation_is_shown_and_every_category_gets_its_turn():
    rows = [{"category": f"c{index % 5}"} for index in range(20)]
    assert in_turn(rows)[:6] == [0, 1, 2, 3, 4, 5]
    assert in_turn([{"category": "b"}, {"category": "b"}, {"category": "a"}, {}]) == [3, 2, 0, 1]
    texts = {"sft_reply": "a", "ppo_reply": "b", "sft_gold": 0, "ppo_gold": 1}
    found = shown(*({"prompt": str(at), "category": "x", **texts} for at in range(40)))
    assert [one.prompt for one in found.exchanges] == [str(at) for at in range(40)] and found.left_out == 0
    assert len(found.first) == FIRST and len(found.others) == 40 - FIRST
    assert found.choices("kind", ("loss", "won")) == {"won": 40}


def test_no_more_are_shown_than_there_is_room_for():
    long = {"category": "x", "sft_reply": "<" * 9000, "ppo_reply": "b" * 9000, "sft_gold": 0, "ppo_gold": 1}
    found = shown(*({"prompt": str(at), **long} for at in range(200)))
    assert 0 < len(found.exchanges) < 200 and len(found.exchanges) + found.left_out == 200
    assert sum(one.size for one in found.exchanges) <= ROOM
    assert found.exchanges[0].size >= 5 * REPLY_CHARACTERS  # `<` takes four bytes of the page


def test_prompts_as_text_and_as_messages():
    assert message_text("a") == "a"
    assert message_text([{"role": "user", "content": "a"}]) == "a"
    assert (
        message_text([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, 3])
        == "system: s\nuser: a\n: 3"
    )
    assert message_text(None) == ""


def test_samples_of_a_stage():
    sft = [{"prompt": "p", "reply": "r", "reference": "x", "category": ""}, {"prompt": "no reply"}]
    ppo = [{"step": step, "prompt": "p", "reply": str(step), "score": 0.5} for step in range(20)]
    run = run_of(sft={"samples": sft}, ppo={"samples": ppo})
    assert [[reply.who for reply in one.replies] for one in said(run, "sft")] == [["SFT", "reference"]]
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
    assert len(one.replies[0].tokens) == TOKEN_CHARACTERS / 100


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
