"""The judge that a recipe names: built, in ppo's looks and at the stage's end, and in words."""

import json

import pytest

from align.recipe.lineage import code_hashes
from align.stages import common, policy_evaluation, run_ppo
from align.stages.judges import in_words, judge_of, model_name, recipe_judge
from reward.judges.rewards import RewardJudge
from reward.protocol import RewardError
from reward.sources import FunctionReward
from tests.align.stages import rejection_case
from tests.align.stages.test_ppo import recipe, write_rows
from tests.reward.judges import test_llm
from tests.tiny_models import byte_tokenizer, save_causal_lm

LONGER = """\
def longer(prompts, first, second, category):
    assert set(category) == {"tell"}
    return [len(one) - len(two) for one, two in zip(first, second)]

def broken(prompts, first, second):
    return ["better"] * len(first)
"""
OUTCOMES = ("win", "tie", "loss")
SHORT = {"num_iterations": 1, "advantage": "rloo", "critic": ..., "critic_warmup_steps": ..., "ptx_coef": 0.0}
endpoint = test_llm.endpoint  # a fixture


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "mine.py").write_text(LONGER)
    return f"{tmp_path}/mine.py"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def recounted(rows, way):
    """Wins, ties and losses in `eval.jsonl`."""
    said = [one for row in rows for pair in row["verdicts"][way] for one in pair]
    return [said.count(outcome) for outcome in OUTCOMES]


def test_a_function_of_both_replies_decides_in_looks_and_at_the_end(tmp_path, functions):
    judge = {"kind": "comparison", "function": f"{functions}:longer"}
    short = SHORT | {"num_iterations": 2}
    chosen = recipe(tmp_path, **short, judge=judge, evaluation={"num_samples": 2, "every_steps": 1})
    summary = run_ppo.run_ppo(chosen)
    out = tmp_path / "run" / "ppo"
    looks = [line for line in lines(out / "metrics.jsonl") if "eval/win_rate" in line]
    assert [line["step"] for line in looks] == [1, 2]
    assert summary["win_rate"] == looks[-1]["eval/win_rate"]
    assert summary["looks_judged_by"] == "the function longer of mine.py"
    assert json.loads((out / "code.json").read_text()) == code_hashes(chosen)
    assert list(code_hashes(chosen)) == ["ppo.judge.function"]
    found = policy_evaluation.evaluate_policy(chosen, "ppo", summary)
    assert (found["judge"], found["judged_by"]) == ("judge", "the function longer of mine.py")
    rows = lines(out / "eval.jsonl")
    for way, suffix in (("greedy", ""), ("sampled", "_sampled")):
        rates = found["win_rates"][way]
        assert [found[f"{name}{suffix}"] for name in OUTCOMES] == recounted(rows, way)
        assert (rates["first"], rates["second"], rates["judged_by"]) == ("policy", "ppo", found["judged_by"])
        assert rates["low"] <= rates["win_share"] <= rates["high"]
        assert rates["judgments"] == {"greedy": 3, "sampled": 6}[way]
    for row in rows:
        longer = len(row["ppo_reply"]) - len(row["sft_reply"])
        assert row["verdicts"]["greedy"] == [["win" if longer > 0 else "loss" if longer < 0 else "tie"]]
        assert "sft_judge" not in row and len(row["verdicts"]["sampled"]) == 2
    assert found["reward"] == pytest.approx(sum(row["ppo_reward"] for row in rows) / 3)
    whats = [what for what, _, _ in found["headline"]]
    assert "win / tie / loss of ppo against policy, greedy, judged by the function longer of mine.py" in whats


def test_a_reward_as_judge_stands_in_the_file_as_scores(tmp_path):
    judge = {"kind": "length", "maximum": 3, "unit": "characters"}
    chosen = recipe(tmp_path, judge=judge, evaluation={"num_samples": 1})
    save_causal_lm(tmp_path / "run/ppo/model", seed=5)
    found = policy_evaluation.evaluate_policy(chosen, "ppo", {})
    rows = lines(tmp_path / "run/ppo/eval.jsonl")
    scores = [[row[f"{policy}_judge_reward"] for row in rows] for policy in ("sft", "ppo")]
    signs = [(after > before) - (after < before) for before, after in zip(*scores, strict=True)]
    assert [found[name] for name in OUTCOMES] == [signs.count(sign) for sign in (1, 0, -1)]
    assert (found["judge"], found["judged_by"]) == ("judge_reward", "the rule length")
    assert found["judge_reward"] == sum(scores[1]) / 3 and "judge_reward_gain" in found
    assert "verdicts" not in rows[0] and {"sft_reward", "ppo_reward"} <= rows[0].keys()


def test_a_judge_that_fails_at_the_end_is_asked_again_by_the_same_command(tmp_path, functions):
    judge = {"kind": "comparison", "function": f"{functions}:broken"}
    chosen = recipe(tmp_path, judge=judge, on_reward_error="mask", evaluation={"num_samples": 0})
    save_causal_lm(tmp_path / "run/ppo/model", seed=5)
    with pytest.raises(RewardError, match="judge 'judge' gave 'better' for pair 0"):
        policy_evaluation.evaluate_policy(chosen, "ppo", {})
    (tmp_path / "mine.py").write_text(LONGER.replace('"better"', '"tie"'))
    assert policy_evaluation.evaluate_policy(chosen, "ppo", {})["tie"] == 3


def test_a_language_model_is_asked_once_about_each_pair_and_its_key_is_written_nowhere(tmp_path, endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-key-of-the-judge")
    judge = {"kind": "llm", "url": f"{endpoint.url}/v1?token=secret1", "model": "m1", "api_key_env": "JUDGE_KEY"}
    chosen = recipe(tmp_path, **SHORT, judge=judge, evaluation={"num_samples": 1, "every_steps": 1})
    summary = run_ppo.run_ppo(chosen)
    assert summary["looks_judged_by"] == "the language model m1" and 0 <= summary["win_rate"] <= 1
    found = policy_evaluation.evaluate_policy(chosen, "ppo", summary)
    assert found["judged_by"] == "the language model m1"
    out, asked = tmp_path / "run" / "ppo", len(endpoint.seen)
    rows = lines(out / "eval.jsonl")
    for row in rows:  # the endpoint likes the longer reply
        longer = len(row["ppo_reply"]) - len(row["sft_reply"])
        assert row["verdicts"]["greedy"] == [["win" if longer > 0 else "loss" if longer < 0 else "tie"]]
    assert len(lines(out / "judge" / "0.jsonl")) == asked > 0
    assert all(headers["Authorization"] == "Bearer sk-key-of-the-judge" for _, headers, _ in endpoint.seen)
    assert policy_evaluation.evaluate_policy(chosen, "ppo", summary) == found and len(endpoint.seen) == asked
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(secret in text for text in written for secret in (b"secret1", b"sk-key-of-the-judge"))


def test_people_who_ranked_the_replies_of_a_run_judge_it(tmp_path):
    """And the rejection stage has a judge as ppo has."""
    plain = rejection_case.recipe(tmp_path, evaluation={"num_samples": 0})
    out = tmp_path / "run" / "rejection"
    save_causal_lm(out / "model", seed=2, initializer_range=0.05, max_position_embeddings=300)
    found = policy_evaluation.evaluate_policy(plain, "rejection", {})
    assert found["judged_by"] == ("the function letters of reward.py, by which rejection itself chose what to train on")
    rows = lines(out / "eval.jsonl")
    assert not any("verdicts" in row for row in rows)
    ranked = [
        {"prompt": row["prompt"], "annotator": who, "reply_a": row["sft_reply"], "reply_b": row["rejection_reply"]}
        | {"rank_a": ranks[0], "rank_b": ranks[1]}
        for row in rows[:2]
        for who, ranks in (("ann", (2, 1)), ("bob", (2, 1)), ("cem", (1, 1)))
    ]
    write_rows(tmp_path / "votes.jsonl", ranked)
    judge = {"kind": "rankings", "path": str(tmp_path / "votes.jsonl")}
    judged = rejection_case.recipe(tmp_path, evaluation={"num_samples": 0}, judge=judge)
    found = policy_evaluation.evaluate_policy(judged, "rejection", {})
    assert found["judged_by"] == "3 annotators of votes.jsonl" and "reward_gain" in found
    assert [found[name] for name in OUTCOMES] == recounted(lines(out / "eval.jsonl"), "greedy") == [4, 2, 0]
    rates = found["win_rates"]["greedy"]
    assert (rates["prompts"], rates["judgments"], rates["unjudged"]) == (2, 6, 1)
    assert (rates["first"], rates["second"]) == ("policy", "rejection")


def test_it_is_said_in_words_who_judges(tmp_path):
    def said(key, **changes):
        return in_words(recipe(tmp_path, **changes), "ppo", key)

    own = recipe(tmp_path)
    assert judge_of(own, "ppo", FunctionReward(len, "reward")).described == (
        "the reward model rm, which ppo was trained on itself"
    )
    assert "embedded world" in judge_of(own, "ppo", FunctionReward(len, "gold")).described
    rule = {"kind": "regex", "pattern": "a", "name": "letters"}
    http = {"kind": "http", "url": "https://host.example/score?key=secret"}
    parts = [part | {"weight": 1} for part in (rule, http, {"kind": "function", "function": "my/own.py:good"})]
    assert said("reward", reward=parts, reward_from=None) == (
        "the sum of the rule letters, the reward at https://host.example/score?key=*** and the function good of own.py"
    )
    gate = {"kind": "gate", "helpfulness": {"kind": "model", "model_from": "org/judge"}, "safety": rule}
    assert said("judge", judge=gate) == "the gate of the reward model org/judge and the rule letters"
    assert model_name("/home/me/runs/a/sft/model") == "sft" and model_name("/home/me/qwen") == "qwen"
    assert model_name("org/qwen") == "org/qwen" and model_name(tmp_path / "ppo" / "model") == "ppo"


def test_a_judge_is_built_as_its_section_says(tmp_path):
    model = recipe(tmp_path, judge={"kind": "model", "model_from": str(tmp_path / "rm")})
    judge = recipe_judge(model, byte_tokenizer(), stage="ppo", out_dir=tmp_path)
    assert isinstance(judge, RewardJudge) and judge.name == judge.reward.name == "judge_reward"
    assert judge.described == "the reward model rm"
    assert recipe_judge(recipe(tmp_path), byte_tokenizer(), stage="ppo", out_dir=tmp_path) is None
    assert common.JUDGED in common.MADE_BY_STAGES
