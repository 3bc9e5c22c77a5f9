"""Looks at held-out prompts: figures by hand, and a gold reward and a judge that only look on."""

import json
import random

import pytest
import torch

from align.runs.errors import TrainingError
from align.trainers.ppo import PPOTrainer
from data_formats.records import Message, Prompt
from reward.combined import CombinedReward, Part
from reward.judges.functions import FunctionJudge
from reward.judges.protocol import Judgment
from reward.protocol import RewardError
from reward.sources import FunctionReward
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case

A, B = (ppo_case.TOKENIZER(letter)["input_ids"][0] for letter in "ab")
END = ppo_case.END


def lengths(prompts, completions):
    return [float(len(text)) for text in completions]


def letters_a(prompts, completions):
    return [float(text.count("a")) for text in completions]


def scripted(prompt, number):
    """Two replies a prompt: "ab", ended, and "aaaa", cut."""
    return ([A, B, END], [A, A, A, A, A, A])[number % 2]


def test_figures_by_hand(tmp_path):
    gold = CombinedReward([Part(FunctionReward(letters_a), 2.0), Part(FunctionReward(lengths), -1.0)], "gold")
    trainer = ppo_case.trainer(
        tmp_path,
        reward=lengths,
        gold=gold,
        engine=ScriptedEngine(scripted),
        eval_prompts=ppo_case.prompts(3),
        rollout={"max_completion_length": 4},
    )
    found = trainer.evaluate(num_samples=2)
    assert found["eval/score"] == (2 + 4) / 2 and found["eval/score_greedy"] == 2
    assert found["eval/gold"] == ((2 - 2) + (8 - 4)) / 2 and found["eval/gold_greedy"] == 0
    assert found["eval/gold/letters_a/mean"] == 2.5 and found["eval/gold/letters_a/std"] == 1.5
    assert found["eval/gold_greedy/lengths/mean"] == 2 and found["eval/gold_greedy/lengths/std"] == 0
    assert found["eval/rm_accuracy"] == 1.0  # of "aaaa" and "ab"; the others are alike
    assert (found["eval/end_rate"], found["eval/end_rate_greedy"]) == (0.5, 1.0)
    assert (found["eval/length"], found["eval/length_greedy"]) == (3.5, 3.0)
    assert found["eval/kl"] == found["eval/kl_greedy"] == pytest.approx(0, abs=1e-6)


def test_kl_and_entropy_by_hand(tmp_path):
    policy, reference = (ppo_case.exact(ppo_case.policy(seed)) for seed in (0, 5))
    trainer = ppo_case.trainer(
        tmp_path,
        policy_model=policy,
        reference=reference,
        critic_model=ppo_case.ExactCritic(),
        engine=ScriptedEngine(scripted),
        eval_prompts=ppo_case.prompts(2),
        micro_batch_size=3,
        rollout={"max_completion_length": 4, "temperature": 0.5},  # of training: looks are at temperature 1
    )
    found = trainer.evaluate(num_samples=2)
    samples = trainer.collect(trainer.eval_prompts, trainer.sampling_params())
    k1, exact, entropy, tokens = [], [], [], 0
    for prompt, reply in zip(samples.prompt_ids, samples.reply_ids, strict=True):
        ids, states = torch.tensor([[*prompt, *reply]]), slice(len(prompt) - 1, -1)
        with torch.no_grad():
            both = [model(input_ids=ids).logits[0, states].log_softmax(-1) for model in (policy, reference)]
        k1.append(sum(float(both[0][t, token] - both[1][t, token]) for t, token in enumerate(reply)))
        exact.append(float((both[0].exp() * (both[0] - both[1])).sum()))
        entropy.append(float(-(both[0].exp() * both[0]).sum()))
        tokens += len(reply)
    assert found["eval/kl"] == pytest.approx(sum(k1) / 4, rel=1e-6)
    assert found["eval/entropy"] == pytest.approx(sum(entropy) / tokens, rel=1e-6)
    assert found["eval/kl_greedy"] == pytest.approx((exact[0] + exact[2]) / 2, rel=1e-6)
    assert found["eval/entropy_greedy"] == pytest.approx((entropy[0] + entropy[2]) / 6, rel=1e-6)


class Alarm:
    """A gold reward, or a judge, that may be asked in evaluation alone, and draws from every generator there is."""

    name = described = "gold"

    def __init__(self):
        self.looking, self.asked = False, 0

    def ask(self, count):
        if not self.looking:
            raise AssertionError("asked outside evaluation")
        self.asked += 1
        return [random.random() + one for one in torch.rand(count).tolist()]

    def score(self, samples):
        return [one - 100.0 * self.asked for one in self.ask(len(samples))]  # worse at every look

    def compare(self, pairs):
        return [[Judgment("second" if one > 1 else "first")] for one in self.ask(len(pairs))]


class Looking(PPOTrainer):
    def evaluate(self, *args, **kwargs):
        alarms = [one for one in (self.gold, self.judge) if one is not None]
        for one in alarms:
            one.looking = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            for one in alarms:
                one.looking = False


def noisy(prompts, completions):
    noise = torch.rand(len(completions)).tolist()
    return [len(text) + value + random.random() for text, value in zip(completions, noise, strict=True)]


def trained(folder, gold, judge=None):
    torch.manual_seed(3)
    random.seed(3)
    trainer = ppo_case.trainer(
        folder,
        kind=Looking,
        reward=noisy,
        gold=gold,
        judge=judge,
        eval_prompts=ppo_case.prompts(3),
        evaluation={"every_steps": 1},
        num_iterations=3,
        save_steps=1,
        guards={"max_kl": 100.0},
    )
    trainer.train()
    weights = [p.detach().clone() for model in (trainer.policy, trainer.critic) for p in model.parameters]
    skipped = ("time", "seconds/", "tokens_per_second", "memory/")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return trainer, weights, [{key: one[key] for key in one if not key.startswith(skipped)} for one in lines]


@pytest.mark.slow
def test_training_is_the_same_with_a_gold_reward_and_a_judge_and_without(tmp_path):
    alarm, judge = Alarm(), Alarm()
    plain, weights, lines = trained(tmp_path / "plain", None)
    judged, same, more = trained(tmp_path / "judged", alarm, judge)
    assert alarm.asked == 2 * 4  # sampled and greedy, before and after each of three iterations
    assert judge.asked == 2 * 3  # there is nothing to compare before the first
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    looked = ("eval/gold", "eval/win_rate")
    golden = [{key: line.pop(key) for key in list(line) if key.startswith(looked)} for line in more]
    assert all(0 <= line.pop("eval/rm_accuracy", 0.5) <= 1 for line in more)  # where a pair differs in gold
    assert more == lines
    gold = {f"{name}{way}" for name in looked for way in ("", "_greedy")}
    seen = [line for line in golden if line]
    assert [set(line) for line in seen] == [{"eval/gold", "eval/gold_greedy"}, gold, gold, gold]
    assert seen[0]["eval/gold"] > seen[-1]["eval/gold"]
    assert plain.state.best_metric == judged.state.best_metric
    assert plain.reward_stats.state_dict() == judged.reward_stats.state_dict()


def test_a_gold_reward_decides_where_there_is_no_judge(tmp_path):
    worse = trained(tmp_path, Alarm())[2]
    assert [line["eval/win_rate"] for line in worse if "eval/win_rate" in line] == [0.0, 0.0, 0.0]


VERDICTS = {"say a": "first", "say ab": "tie", "say abc": "second"}


def by_prompt(prompts, first, second, category):
    """One verdict a pair that the prompt decides, none where it has doubled letters."""
    assert set(category) == {"say"}
    return [VERDICTS.get(prompt[-1]["content"]) for prompt in prompts]


def test_wins_by_hand(tmp_path):
    """The starting policy says "ab" and "aaaa", the later one "b" and "bbbb"."""
    trainer = ppo_case.trainer(
        tmp_path,
        judge=by_prompt,
        engine=ScriptedEngine(scripted),
        eval_prompts=ppo_case.prompts(6),
        rollout={"max_completion_length": 4},
    )
    assert isinstance(trainer.judge, FunctionJudge)
    assert not any("win_rate" in name for name in trainer.evaluate(num_samples=2))
    trainer.engine = trainer.rollout.engine = ScriptedEngine(
        lambda prompt, number: [B, END] if number % 2 == 0 else [B] * 6
    )
    trainer.learner.policy_steps.value = 1  # the policy has moved
    found = trainer.evaluate(num_samples=2)
    assert found["eval/win_rate"] == found["eval/win_rate_greedy"] == (0 + 0.5 + 1) / 3
    assert (found["eval/no_verdict"], found["eval/no_verdict_greedy"]) == (6, 3)
    assert trainer.evaluate(ppo_case.prompts(6)[::-1], num_samples=2)["eval/win_rate"] == found["eval/win_rate"]
    other = Prompt((Message("user", "never answered"),))
    assert not any("win_rate" in name for name in trainer.evaluate([*ppo_case.prompts(5), other]))  # not all known
    trainer.judge = FunctionJudge(shorter)
    assert trainer.evaluate(num_samples=2)["eval/win_rate"] == 0.75  # "b" against "ab", "bbbb" against "aaaa"


def shorter(prompts, first, second):
    """Above 0 where the first reply is the shorter one."""
    return [len(two) - len(one) for one, two in zip(first, second, strict=True)]


@pytest.mark.slow
def test_a_run_that_resumes_is_compared_with_the_policy_it_began_with(tmp_path):
    def make():
        return ppo_case.trainer(
            tmp_path,
            judge=shorter,
            eval_prompts=ppo_case.prompts(3),
            evaluation={"every_steps": 1},
            num_iterations=3,
            save_steps=1,
            save_total_limit=5,
        )

    def looks(trainer):
        wins = ("step", "eval/win_rate", "eval/win_rate_greedy")
        return [{name: line.get(name) for name in wins} for line in trainer.state.log_history if "eval/score" in line]

    whole = make()
    whole.train()
    again = make()
    again.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    assert looks(again) == looks(whole) and [line["step"] for line in looks(whole)] == [0, 1, 2, 3]
    assert None not in [value for line in looks(whole)[1:] for value in line.values()]
    del whole.checkpoints.own["opening"]  # as in a checkpoint of a former version
    former = make()
    former.load_checkpoint(whole.save_checkpoint())
    assert not any("win_rate" in name for name in former.evaluate())


@pytest.mark.parametrize("way", ["stop", "retry", "mask"])
def test_a_judge_that_fails_loses_no_run(tmp_path, way):
    asked = []

    def broken(prompts, first, second):
        asked.append(len(first))
        raise ValueError("no line")

    trainer = ppo_case.trainer(
        tmp_path, judge=broken, eval_prompts=ppo_case.prompts(2), on_reward_error=way, num_iterations=1
    )
    trainer.train()
    if way == "mask":
        found = trainer.evaluate()
        assert found["eval/no_verdict"] == 2 and not any("win_rate" in name for name in found)
        return
    with pytest.raises(TrainingError, match=r"judge 'broken' failed.*no line.*evaluation after iteration 1.*saved in"):
        trainer.look()
    assert len(asked) == {"stop": 1, "retry": 3}[way]
    assert (tmp_path / "checkpoints/step-1").is_dir()


def test_a_gold_reward_with_another_tokenizer_gets_text_alone(tmp_path):
    class Foreign:
        name, tokenizer = "foreign", ppo_case.byte_tokenizer()

        def score(self, samples):
            self.seen = samples
            return [0.0] * len(samples)

    gold = Foreign()
    trainer = ppo_case.trainer(tmp_path, gold=gold, eval_prompts=ppo_case.prompts(2))
    trainer.evaluate()
    assert all(sample.completion_ids is not None for sample in gold.seen)
    gold.tokenizer.add_tokens(["new"])
    trainer.evaluate()
    assert all(sample.completion_ids is None for sample in gold.seen)


def test_a_gold_reward_that_fails_stops_like_any_other(tmp_path):
    def broken(prompts, completions):
        raise RewardError("the judges are on strike")

    trainer = ppo_case.trainer(tmp_path, gold=FunctionReward(broken, "gold"), eval_prompts=ppo_case.prompts(2))
    with pytest.raises(TrainingError, match=r"on strike.*evaluation after iteration 0"):
        trainer.train()

    class Short:
        name = "short"

        def score(self, samples):
            return [1.0]

    trainer.gold = Short()
    with pytest.raises(TrainingError, match=r"reward 'short' must give one finite float for each of 2 replies"):
        trainer.evaluate()
