"""Looks at held-out prompts: figures by hand, and a gold reward that only looks on."""

import json
import random

import pytest
import torch

from align.runs.errors import TrainingError
from align.trainers.ppo import PPOTrainer
from reward.combined import CombinedReward, Part
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
    """A gold reward that may be asked in evaluation alone, and draws from every generator there is."""

    name = "gold"

    def __init__(self):
        self.looking, self.asked = False, 0

    def score(self, samples):
        if not self.looking:
            raise AssertionError("the gold reward was asked outside evaluation")
        self.asked += 1
        noise = torch.rand(len(samples)).tolist()
        return [random.random() + one - 100.0 * self.asked for one in noise]  # worse at every look


class Looking(PPOTrainer):
    def evaluate(self, *args, **kwargs):
        if self.gold is not None:
            self.gold.looking = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if self.gold is not None:
                self.gold.looking = False


def noisy(prompts, completions):
    noise = torch.rand(len(completions)).tolist()
    return [len(text) + value + random.random() for text, value in zip(completions, noise, strict=True)]


def trained(folder, gold):
    torch.manual_seed(3)
    random.seed(3)
    trainer = ppo_case.trainer(
        folder,
        kind=Looking,
        reward=noisy,
        gold=gold,
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


def test_training_is_the_same_with_a_gold_reward_and_without(tmp_path):
    alarm = Alarm()
    plain, weights, lines = trained(tmp_path / "plain", None)
    judged, same, more = trained(tmp_path / "judged", alarm)
    assert alarm.asked == 2 * 4  # sampled and greedy, before and after each of three iterations
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    golden = [{key: line.pop(key) for key in list(line) if key.startswith("eval/gold")} for line in more]
    assert more == lines
    seen = [line for line in golden if line]
    assert len(seen) == 4 and all(set(line) == {"eval/gold", "eval/gold_greedy"} for line in seen)
    assert seen[0]["eval/gold"] > seen[-1]["eval/gold"]
    assert plain.state.best_metric == judged.state.best_metric
    assert plain.reward_stats.state_dict() == judged.reward_stats.state_dict()


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
