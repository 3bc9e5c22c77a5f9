from collections import Counter

import pytest

from align.report.curves import rejection_panels
from align.report.glance import at_a_glance
from align.report.names import judge_of, judged_by, starting_policy
from align.report.page import render
from align.report.policy_evaluation import compared, comparisons
from align.report.svg import pictures
from align.runs.run_files import Run, StageFiles


def line(before, after, category="maths", **more):
    return {"category": category, "sft_reply": "a", "ppo_reply": "b", "sft_gold": before, "ppo_gold": after, **more}


def right(before, after):
    return {"sft_correct": float(before), "ppo_correct": float(after)}


def run_of(summary=None, evals=(), whole=None, recipe=None) -> Run:
    names = ("base", "sft", "pmp", "rm", "rejection", "ppo")
    stages = {name: StageFiles(name) for name in names} | {"ppo": StageFiles("ppo", summary or {}, evals=list(evals))}
    return Run("n", whole or {}, stages, recipe or {}, [])


def tables(run):
    return comparisons(run)[0].tables


def counts(table):
    return {name: (one.win, one.tie, one.loss) for name, one in table.items()}


ROWS = [line(0, 1), line(1, 1), line(1, 0.5, "coding"), line(0, 2, "coding"), line(None, 3), {"category": "x"}]


def test_counts_by_category():
    (table,) = tables(run_of(evals=ROWS)).values()
    assert list(counts(table).items()) == [("all", (2, 1, 1)), ("coding", (1, 0, 1)), ("maths", (1, 1, 0))]
    assert table["all"].share == 2.5 / 4 and table["all"].low < 0.625 < table["all"].high
    assert table["all"].scores == (0.5, 1.125) and table["all"].right is None


def test_sampled_replies_are_compared_one_by_one():
    sampled = {"sft": [{"gold": 0}, {"gold": 1}, {"gold": 2}], "ppo": [{"gold": 1}, {"gold": 1}, "torn"]}
    found = tables(run_of(evals=[line(1, 0, sampled=sampled)]))
    assert {name: counts(table)["all"] for name, table in found.items()} == {
        "greedy": (0, 0, 1),
        "temperature 1": (1, 1, 0),
    }


def test_a_win_with_both_replies_wrong_is_one_of_manners():
    """ "Sure! 2 + 3 is 4." wins over "4", and neither is right."""
    rows = [line(0, 0.5, **right(0, 0)), line(0, 1.5, **right(0, 1)), line(1, 1.5, **right(1, 1))]
    rows += [line(0, 0.5, **right(1, 0)), line(1, 0.0, **right(1, 0)), line(0, 0, **right(0, 0))]
    (table,) = tables(run_of(evals=rows)).values()
    assert table["all"].kinds == {"won-wrong": 1, "won-right": 2, "won-broken": 1, "loss": 1, "tie": 1}
    assert table["all"].win == 4 and table["all"].right == (0.5, 2 / 6)
    assert not table["all"].fell
    glance = at_a_glance(run := run_of({"steps": 1}, rows, {"gold_range": [-1, 1.5]}), comparisons(run))
    told = "No sure winner: PPO won 4 of 6 against SFT, tied 1, lost 1, correct 50 → 33 %"
    told += "; judged by the gold score of the embedded world"
    assert glance.sentence == f"{told}, which training has not seen."
    assert glance.beware[:2] == [
        "In 1 of the 4 wins both replies were wrong: these are won by manners.",
        "In 1 of the 4 wins a right reply became a wrong one.",
    ]
    assert [row.measured for row in glance.rows] == ["correct, greedy", "won, greedy", "gold, greedy"]


def test_a_category_that_got_worse_is_named():
    rows = [line(0, 1, "maths", **right(1, 0)) for _ in range(9)] + [line(0, 1, "maths", **right(0, 1))]
    rows += [line(0, 1, "coding", **right(at % 2, at % 3 == 0)) for at in range(40)]
    glance = at_a_glance(run := run_of({"steps": 1}, rows), comparisons(run))
    assert "Correct fell in maths (90 → 10 %)." in glance.beware


def sentence_of(won, tied, lost, **more):
    rows = [
        line(*scores)
        for scores, often in zip(((0, 1), (1, 1), (1, 0)), (won, tied, lost), strict=True)
        for _ in range(often)
    ]
    run = run_of({"judge": "gold"} | more, [row | {"prompt": at} for at, row in enumerate(rows)])
    glance = at_a_glance(run, comparisons(run))
    return glance.sentence.partition(";")[0], glance.beware


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((50, 8, 2), "PPO won 50 of 60 against SFT"),
        ((2, 8, 50), "PPO lost 50 of 60 against SFT"),
        ((16, 44, 0), "PPO won 16 of 60 against SFT, tied 44"),
        ((5, 30, 25), "PPO lost 25 of 60 against SFT, tied 30, won 5"),
        ((25, 10, 25), "No sure winner: PPO won 25 of 60 against SFT, tied 10, lost 25"),
        ((0, 0, 3), "No sure winner: PPO lost 3 of 3 against SFT"),
        ((0, 60, 0), "No sure winner: PPO won 0 of 60 against SFT, tied 60"),
    ],
)
def test_the_sentence_names_a_winner_where_there_is_one(counts, sentence):
    said, beware = sentence_of(*counts)
    assert said == sentence
    assert any("holds 50 %" in one for one in beware) == said.startswith("No sure winner")


def test_other_decoding_that_ends_otherwise_is_told():
    sampled = {"sft": [{"gold": 1}] * 2, "ppo": [{"gold": 0}, {"gold": 0}]}
    rows = [line(0, 1, sampled=sampled, **right(0, at % 2)) for at in range(40)]
    gain = {"difference": 0.05, "low": -0.02, "high": 0.12}
    glance = at_a_glance(run := run_of({"correct_gain": gain}, rows), comparisons(run))
    assert glance.sentence.startswith("PPO won 40 of 40 against SFT, correct 0 → 50 %")
    assert glance.beware[0] == "In 20 of the 40 wins both replies were wrong: these are won by manners."
    assert "At temperature 1 it is otherwise. PPO lost 80 of 80 against SFT." in glance.beware
    assert "The change in correct may be chance: its interval holds 0." in glance.beware


def test_replies_to_one_prompt_are_not_as_many_prompts():
    """Eight of eight samples of one prompt that got wrong are no proof, of eight prompts they are."""
    sampled = {"sft": [{"gold": 1, "correct": 1}] * 8, "ppo": [{"gold": 1, "correct": 0}] * 8}
    fell = lambda rows: tables(run_of(evals=rows))["temperature 1"]["all"].fell  # noqa: E731
    assert not fell([line(0, 1, sampled=sampled)])
    assert fell([line(0, 1, sampled=sampled)] * 8)


def test_verdicts_of_a_judge_without_scores():
    sampled = {"sft": [{"reply": "a"}, {"reply": "b"}], "ppo": [{"reply": "c"}, {"reply": "d"}]}
    verdicts = {"greedy": [["win", "tie", None]], "sampled": [["loss"], ["win", "nonsense"]]}
    row = {"category": "x", "sft_reply": "a", "ppo_reply": "b", "sft_reward": 1.0, "ppo_reward": 0.0}
    rows = [row | {"sampled": sampled, "verdicts": verdicts}, row]  # the judge has nothing on the second
    run = run_of({"judge": "votes", "judged_by": "3 annotators of votes.csv"}, rows)
    (one,) = comparisons(run)
    assert {decoding: counts(table)["all"] for decoding, table in one.tables.items()} == {
        "greedy": (1, 1, 0),
        "temperature 1": (1, 0, 1),
    }
    assert one.tables["greedy"]["all"].no_verdict == 1 and one.tables["greedy"]["all"].scores is None
    assert not one.own
    sentence = at_a_glance(run, [one]).sentence
    assert sentence == (
        "No sure winner: PPO won 1 of 2 judgments against SFT, tied 1; judged by 3 annotators of votes.csv."
    )


def test_a_judge_that_came_to_no_verdict_has_nothing_to_tell():
    row = {"category": "x", "sft_reply": "a", "ppo_reply": "b", "verdicts": {"greedy": [[None, None]]}}
    run = run_of({"judge": "votes"}, [row])
    (one,) = comparisons(run)
    assert one.tables["greedy"]["all"].no_verdict == 2 and one.judged_by == "the judge votes"
    assert at_a_glance(run, [one]).sentence == "PPO is finished."
    assert "2 came to no verdict" in render(run, {})


def test_the_judge():
    both = [line(0, 1, sft_reward=1, ppo_reward=0, sft_tokens=3, ppo_tokens=4, sft_correct=0, ppo_correct=1)]
    assert judge_of(StageFiles("ppo", evals=both)) == "gold"
    assert judge_of(StageFiles("ppo", {"judge": "reward"}, evals=both)) == "reward"
    assert judge_of(StageFiles("ppo", {"judge": "unknown"}, evals=both)) == "gold"
    only = {key: value for key, value in both[0].items() if "gold" not in key}
    assert judge_of(StageFiles("ppo", evals=[only])) == "reward"
    nobody = StageFiles("ppo", evals=[{"sft_reply": "a", "ppo_reply": "b", "sft_tokens": 1, "ppo_tokens": 2}])
    assert judge_of(nobody) is None and compared(run_of(), nobody).tables == {}
    assert comparisons(run_of(evals=[{"sft_reply": "a"}])) == []


TRAINED = "that PPO was trained on"


@pytest.mark.parametrize(
    ("summary", "whole", "section", "words"),
    [
        ({"judged_by": "the model gpt"}, {}, {}, "the model gpt"),
        (
            {"judge": "gold"},
            {"gold_range": [-1, 1]},
            {},
            "the gold score of the embedded world, which training has not seen",
        ),
        ({"judge": "gold"}, {}, {}, "the score gold"),
        ({"judge": "reward"}, {}, {"reward": []}, f"the reward model {TRAINED}"),
        ({"judge": "reward"}, {}, {"reward": [{"kind": "regex", "name": "polite"}]}, f"the rule polite {TRAINED}"),
        (
            {"judge": "reward"},
            {},
            {"reward": [{"kind": "function", "function": "f.py:g"}]},
            f"the reward function g {TRAINED}",
        ),
        ({"judge": "reward"}, {}, {}, f"the reward {TRAINED}"),
        (
            {"judge": "gold_reward"},
            {},
            {"gold_reward": [{"kind": "math"}]},
            "the rule math of ppo.gold_reward, which does not train the policy",
        ),
    ],
)
def test_who_judged_is_said_and_nothing_that_the_run_does_not_tell(summary, whole, section, words):
    row = {f"{side}_{name}": at for at, side in enumerate(("sft", "ppo")) for name in ("gold", "reward", "gold_reward")}
    run = run_of(summary, [row], whole, {"ppo": section})
    assert judged_by(run, run.stages["ppo"]) == words


def test_a_run_without_a_reward_model_speaks_of_none():
    row = {"category": "x", "sft_reply": "a", "ppo_reply": "b", "sft_reward": 0, "ppo_reward": 1}
    summary = {"judge": "reward", "score": 1.0, "rollout_score": 1.0}
    page = render(run_of(summary, [row], recipe={"ppo": {"reward": [{"kind": "gsm8k"}]}}), {})
    told, _, _ = page.partition('<section id="glossary">')
    assert "judged by the rule gsm8k that" in told and "rule gsm8k&#39;s score" in told and "eward model" not in told


def test_between_which_two():
    for origin, name in (
        ({"kind": "stage", "value": "rejection"}, "RS"),
        ({"kind": "stage", "value": "sft"}, "SFT"),
        ({"kind": "path", "value": "/models/Qwen2.5-0.5B-Instruct"}, "Qwen2.5-0.5B-Instruct"),
        ({"kind": "path", "value": "runs/a/sft/model"}, "SFT"),
        (None, "SFT"),
        (3, "SFT"),
    ):
        assert starting_policy(StageFiles("ppo", {"origins": {"policy": origin}})) == name
    assert starting_policy(StageFiles("dpo", {"origin": {"kind": "stage", "value": "rejection"}})) == "RS"
    row = {"category": "x", "sft_reply": "a", "rejection_reply": "b", "sft_reward": 0, "rejection_reward": 1}
    run = run_of()
    run.stages["rejection"] = StageFiles("rejection", {"judge": "reward"}, evals=[row])
    glance = at_a_glance(run, comparisons(run))
    assert glance.sentence == (
        "No sure winner: RS won 1 of 1 against SFT; judged by the reward that RS was trained on."
    )


def test_rejection_is_told_by_the_reward_that_chose():
    """Neither "reward model" where there is none, nor "best of all" where a reward may have failed on some."""
    rounds = [{"step": step, "score_single": 0.5, "score_best": 0.75} for step in (1, 2)]
    summary = {"by_k": [{"k": 1, "best": 0.5}, {"k": 4, "best": 0.75}]}
    run = run_of(recipe={"rejection": {"reward": [{"kind": "gsm8k"}]}})
    run.stages["rejection"] = StageFiles("rejection", summary, rounds)
    drawn = {picture.title: [key.label for key in picture.keys] for picture in pictures(rejection_panels(run), "x")}
    assert drawn == {
        "best of k replies, by the rule gsm8k": ["best"],
        "rounds, by the rule gsm8k": ["one sample, on average", "best of k samples"],
    }
    page = render(run, {"rejection": pictures(rejection_panels(run), "x")})
    section = page.partition('<section id="rejection">')[2].partition("</section>")[0]
    assert "Scores are those of the rule gsm8k" in section and "reward model" not in section


def test_runs_that_compare_nothing_say_what_they_have():
    accuracy = {"accuracy": 0.8, "accuracy_low": 0.75, "accuracy_high": 0.85, "pairs": 100, "length_baseline": 0.6}
    run = run_of()
    said = lambda: at_a_glance(run, comparisons(run)).sentence  # noqa: E731
    assert said() == "No stage has left anything in this folder yet."
    run.stages["sft"] = StageFiles("sft", {"heldout_loss": 0.5, "heldout_loss_before": 2.0})
    assert said() == "SFT has a held-out loss of 0.5 nats a token (before: 2)."
    run.stages["rm"] = StageFiles("rm", accuracy)
    words = "RM is right on 80.0 % [75.0, 85.0] of 100 held-out pairs (length alone: 60.0 %)"
    assert said() == f"{words}; judged by the pairs' labels."
    run.stages["ppo"] = StageFiles("ppo", metrics=[{"step": 16}])
    assert said() == "PPO is unfinished, at step 16; finished before it: SFT, RM."
    run.stages["ppo"] = StageFiles("ppo", {"rollout_score_first": -0.5, "rollout_score": 1.0})
    assert said() == "PPO's reward on rollouts went from -0.5 to 1; nothing judged it on held-out prompts."


def test_of_very_many_categories_those_with_most_prompts_are_told():
    rows = [line(0, 1, f"c{at % 50:02}") for at in range(90)] + [line(0, 1, "z")]
    run = run_of(evals=rows)
    (table,) = tables(run).values()
    assert list(table) == ["all", *(f"c{at:02}" for at in range(40))] and table["all"].pairs == 91
    assert "11 more categories have fewer prompts" in render(run, {})
    assert "more categories" not in render(run_of(evals=rows[:40]), {})


def test_a_category_named_all_is_not_counted_twice():
    for name in ("all", ""):  # nor that of all rows, which have none
        (table,) = tables(run_of(evals=[line(0, 1, name)])).values()
        assert counts(table) == {"all": (1, 0, 0)}


def test_means_have_what_is_right_first_and_the_parts_of_a_reward():
    row = line(0, 1, **right(0, 1), sft_reward=1, ppo_reward=3, sft_finished=True, ppo_finished=False)
    row |= {"sft_reward/brief": 0.25, "ppo_reward/brief": 0.5, "sft_only": 1}
    (one,) = comparisons(run_of({"judge": "gold"}, [row]))
    assert [(mean.name, mean.by_decoding["greedy"]) for mean in one.means] == [
        ("correct", (0.0, 1.0)),
        ("gold", (0.0, 1.0)),
        ("finished", (1.0, 0.0)),
        ("reward", (1.0, 3.0)),
        ("reward/brief", (0.25, 0.5)),
    ]
    assert Counter(one.tables["greedy"]["all"].kinds) == {"won-right": 1}
