from align.report.policy_evaluation import by_category, judge_of
from align.runs.run_files import StageFiles


def line(before, after, category="maths", **more):
    return {"category": category, "sft_reply": "a", "ppo_reply": "b", "sft_gold": before, "ppo_gold": after, **more}


def counts(table):
    return {name: (one.win, one.tie, one.loss) for name, one in table.items()}


ROWS = [line(0, 1), line(1, 1), line(1, 0.5, "coding"), line(0, 2, "coding"), line(None, 3), {"category": "x"}]


def test_counts_by_category():
    (table,) = by_category(StageFiles("ppo", evals=ROWS)).values()
    assert list(counts(table).items()) == [("all", (2, 1, 1)), ("coding", (1, 0, 1)), ("maths", (1, 1, 0))]
    assert table["all"].decided == 2 / 3
    assert (table["all"].before, table["all"].after) == (0.5, 1.125)


def test_sampled_replies_are_compared_one_by_one():
    sampled = {"sft": [{"gold": 0}, {"gold": 1}, {"gold": 2}], "ppo": [{"gold": 1}, {"gold": 1}, "torn"]}
    tables = by_category(StageFiles("ppo", evals=[line(1, 0, sampled=sampled)]))
    assert {name: counts(table)["all"] for name, table in tables.items()} == {
        "greedy": (0, 0, 1),
        "temperature 1": (1, 1, 0),
    }


def test_the_judge():
    both = [line(0, 1, sft_reward=1, ppo_reward=0, sft_tokens=3, ppo_tokens=4, sft_correct=0, ppo_correct=1)]
    assert judge_of(StageFiles("ppo", evals=both)) == "gold"
    assert judge_of(StageFiles("ppo", {"judge": "reward"}, evals=both)) == "reward"
    assert judge_of(StageFiles("ppo", {"judge": "unknown"}, evals=both)) == "gold"
    only = {key: value for key, value in both[0].items() if "gold" not in key}
    assert judge_of(StageFiles("ppo", evals=[only])) == "reward"
    assert (
        judge_of(StageFiles("ppo", evals=[{"sft_reply": "a", "ppo_reply": "b", "sft_tokens": 1, "ppo_tokens": 2}]))
        is None
    )
    assert by_category(StageFiles("ppo", evals=[{"sft_reply": "a"}])) == {}


def test_a_category_named_all_is_not_counted_twice():
    (table,) = by_category(StageFiles("ppo", evals=[line(0, 1, "all")])).values()
    assert counts(table) == {"all": (1, 0, 0)}
