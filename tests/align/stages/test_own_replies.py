"""What a stage says of its reward on the policy's own replies: by a reward as judge, by one that sees both replies."""

import pytest

from align.evaluation.replies import JudgedReply
from align.recipe import load_recipe
from align.runtime.files import write_json
from align.stages.own_replies import reward_on_own
from data_formats.records import Message, Prompt
from reward.judges.functions import FunctionJudge
from reward.judges.rewards import RewardJudge
from reward.sources import FunctionReward

PROMPTS = [Prompt((Message("user", f"question {at}"),)) for at in range(40)]
GOLD = RewardJudge(FunctionReward(lambda prompts, completions: [0.0] * len(completions), "gold"), described="the gold")


def replies(*rows, times=20):
    """Replies to forty prompts, those of two in turn, as (text, reward, gold)."""
    return [
        [JudgedReply(text, True, 1, {"reward": reward, "gold": gold}) for text, reward, gold in rows[at % 2]]
        for at in range(2 * times)
    ]


RIGHT = [("a", 1.0, 1.0), ("b", 0.0, 0.0), ("b", 0.0, 0.0)]  # two pairs, one of which is alike
WRONG = [("a", 1.0, 0.0), ("b", 0.0, 1.0), ("c", 2.0, 1.0)]  # one wrong, one right, one without a better reply


@pytest.fixture
def recipe(tmp_path):
    write_json(tmp_path / "rm/summary.json", {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95})
    (tmp_path / "rm/model").mkdir()
    return load_recipe("quickstart", [f"output_dir={tmp_path}"])


def test_by_scores_every_two_replies_that_differ(recipe, caplog):
    found = reward_on_own(recipe, "ppo", PROMPTS, (replies(RIGHT, RIGHT), replies(RIGHT, WRONG)), GOLD)
    own = found["reward_on_own"]
    assert (own["before"]["accuracy"], own["before"]["pairs"]) == (1.0, 80)
    assert (own["after"]["accuracy"], own["after"]["pairs"], own["after"]["undecided"]) == (60 / 80, 80, 20)
    assert own["heldout"] == {"accuracy": 0.9, "low": 0.8, "high": 0.95} and own["judged_by"] == "the gold"
    assert "a new round of comparisons is due" in own["due"] and own["due"] in caplog.text
    ((what, before, after),) = found["headline"]
    assert what.endswith("judged by the gold") and before == "100.0 %" and after.startswith("75.0 % [")


def test_a_judge_of_both_replies_is_asked_about_one_pair_a_prompt(recipe, caplog):
    asked = []

    def first_wins(prompts, first, second):
        asked.extend(zip(first, second, strict=True))
        return ["first"] * len(prompts)

    judge = FunctionJudge(first_wins, name="judge", described="a function")
    found = reward_on_own(recipe, "ppo", PROMPTS, (replies(RIGHT, WRONG), replies(RIGHT, WRONG)), judge)
    assert asked == [("a", "b")] * 80 and found["reward_on_own"]["after"]["accuracy"] == 1.0
    assert found["reward_on_own"]["due"] == "" and not caplog.records


def test_nothing_is_said_where_nothing_can_go_stale(recipe):
    sampled = (replies(RIGHT, RIGHT), replies(RIGHT, RIGHT))
    itself = RewardJudge(FunctionReward(lambda prompts, completions: [], "reward"))
    assert reward_on_own(recipe, "ppo", PROMPTS, sampled, itself) == {}
    assert reward_on_own(recipe, "ppo", PROMPTS, None, GOLD) == {}
    rules = load_recipe("quickstart", ["ppo.reward={kind: length, maximum: 9}", "ppo.critic_from=rm"])
    assert reward_on_own(rules, "ppo", PROMPTS, sampled, GOLD) == {}
