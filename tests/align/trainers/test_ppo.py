import copy
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import TrainerCallback

from align.runs.errors import TrainingError
from align.trainers.ppo import PPOTrainer, make_accelerator
from align.trainers.ppo.kept import KeptPass
from align.trainers.ppo.minibatches import BatchSplitError
from align.trainers.ppo.types import TokenBatch
from reward.combined import CombinedReward, Part
from reward.sources import FunctionReward
from rollouts.errors import RolloutError
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters])


class Ratios(PPOTrainer):
    """Notes min and max ratio of every policy micro-batch, and can perturb the policy before an update."""

    perturb = 0.0

    def update(self, experience):
        self.ratios = []
        with torch.no_grad():
            for parameter in self.policy.parameters:
                parameter.add_(self.perturb)
        return super().update(experience)

    def policy_loss(self, logps_BS, batch):
        loss, stats = super().policy_loss(logps_BS, batch)
        self.ratios.append((float(stats["ratio_min"]), float(stats["ratio_max"])))
        return loss, stats


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_ratio_is_one_and_later_ones_are_not(tmp_path, temperature):
    trainer = ppo_case.trainer(
        tmp_path, kind=Ratios, rollout={"temperature": temperature}, rollout_batch_size=8, micro_batch_size=4
    )
    trainer.step()
    first, second = trainer.ratios[:2], trainer.ratios[2:]  # two micro-batches a minibatch
    assert all(abs(ratio - 1) < 1e-6 for pair in first for ratio in pair)
    assert max(abs(ratio - 1) for pair in second for ratio in pair) > 1e-3


def test_first_ratio_in_float64(tmp_path):
    trainer = ppo_case.trainer(
        tmp_path, kind=Ratios, policy_model=ppo_case.exact(ppo_case.policy()), critic_model=ppo_case.ExactCritic()
    )
    trainer.step()
    assert all(abs(ratio - 1) < 1e-12 for ratio in trainer.ratios[0])


def test_a_perturbed_policy_has_another_ratio(tmp_path):
    trainer = ppo_case.trainer(tmp_path, kind=Ratios)
    trainer.perturb = 1e-2
    trainer.step()
    assert max(abs(ratio - 1) for ratio in trainer.ratios[0]) > 1e-4


def test_dropout_is_off_even_in_training_mode(tmp_path):
    noisy = ppo_case.policy(attention_dropout=0.5).train()
    trainer = ppo_case.trainer(tmp_path, kind=Ratios, policy_model=noisy)
    noisy.train()
    trainer.step()
    assert all(abs(ratio - 1) < 1e-6 for ratio in trainer.ratios[0])


@pytest.mark.parametrize(
    ("warmup", "moved"), [(0, [True, True]), (1, [True, True]), (2, [False, True]), (3, [False, True])]
)
def test_warm_up_counts_optimizer_steps(tmp_path, warmup, moved):
    trainer = ppo_case.trainer(
        tmp_path, critic_warmup_steps=warmup, num_mini_batches=2, policy={"weight_decay": 0.5}, save_steps=1
    )
    policies, critics, rewards = [weights(trainer.policy)], [weights(trainer.critic)], []
    for _ in range(2):
        rewards.append(trainer.step())
        trainer.state.global_step += 1
        policies.append(weights(trainer.policy))
        critics.append(weights(trainer.critic))
    assert [not torch.equal(a, b) for a, b in pairwise(policies)] == moved
    assert all(not torch.equal(a, b) for a, b in pairwise(critics))
    assert trainer.optimizer_steps == 4
    assert trainer.policy_version == 4 - warmup  # exactly: each unfrozen step stepped the policy once
    steps = {int(state["step"]) for state in trainer.policy.optimizer.state.values()}
    assert steps == {4 - warmup}  # no momentum was gathered while frozen
    assert ("policy/loss" in rewards[0]) == (warmup < 2)


def test_warm_up_computes_no_policy_gradient_and_no_ptx(tmp_path):
    class Watch(PPOTrainer):
        called = ()

        def policy_loss(self, *args):
            self.called += ("policy",)
            return super().policy_loss(*args)

        def ptx_loss(self, *args):
            self.called += ("ptx",)
            return super().ptx_loss(*args)

    trainer = ppo_case.trainer(
        tmp_path, kind=Watch, critic_warmup_steps=2, ptx_coef=1.0, ptx_ratio=1, ptx_blocks=[[1, 2, 3]] * 4
    )
    before = trainer.ptx.state_dict()
    trainer.step()
    assert trainer.called == () and trainer.ptx.state_dict() == before
    assert all(parameter.grad is None for parameter in trainer.policy.parameters)
    trainer.step()
    assert set(trainer.called) == {"policy", "ptx"} and trainer.ptx.state_dict() != before


def test_warm_up_saves_checkpoints_and_draws_fresh_rollouts(tmp_path):
    trainer = ppo_case.trainer(tmp_path, critic_warmup_steps=3, save_steps=1, num_iterations=2, log_samples=8)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    first, second = ([line["reply"] for line in lines if line["step"] == step] for step in (1, 2))
    assert len(first) == len(second) == 8 and first != second


def test_optimizer_steps_are_real_minibatches(tmp_path):
    for minis, epochs in ((1, 1), (4, 1), (2, 3)):
        trainer = ppo_case.trainer(
            tmp_path / f"{minis}{epochs}", num_mini_batches=minis, num_ppo_epochs=epochs, num_iterations=1
        )
        trainer.train()
        assert trainer.optimizer_steps == minis * epochs
        assert {int(state["step"]) for state in trainer.policy.optimizer.state.values()} == {minis * epochs}


def test_each_epoch_has_its_own_order_and_the_seed_fixes_it(tmp_path):
    trainer = ppo_case.trainer(tmp_path)
    tokens = trainer.make_experience(ppo_case.samples((2,) * 8), torch.zeros(8, dtype=torch.float64))[0].tokens
    orders = [[row for rows, _ in trainer.minibatches(tokens, epoch) for row in rows.tolist()] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert all(order[at + 1] == order[at] + 1 for order in orders for at in range(0, 8, 2))  # both replies to a prompt


def test_scores_penalty_running_mean_and_clip_by_hand(tmp_path):
    trainer = ppo_case.trainer(tmp_path, missing_eos_penalty=0.5, reward_clip_range=2.0)
    ends, lengths = torch.tensor([True, True, False]), torch.tensor([3, 3, 3])
    first = trainer.normalize_scores(trainer.penalize_scores(torch.tensor([1.0, 3.0, 8.5]), ends, lengths))
    assert first.tolist() == [-2.0, -1.0, 2.0]  # 1, 3, 8 around their mean 4; -3 and 4 are clipped
    second = trainer.normalize_scores(torch.tensor([10.0]))
    assert second.tolist() == [2.0]  # (12 + 10) / 4 = 5.5, and 4.5 is clipped
    assert trainer.reward_stats.mean == pytest.approx(5.5)


def test_scores_by_running_mean_and_deviation_by_hand(tmp_path):
    trainer = ppo_case.trainer(tmp_path, normalize_reward="running_mean_std")
    first = trainer.normalize_scores(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert first.tolist() == pytest.approx([-1.0, 1.0])
    second = trainer.normalize_scores(torch.tensor([5.0, 7.0], dtype=torch.float64))
    assert second.tolist() == pytest.approx([1 / math.sqrt(5), 3 / math.sqrt(5)])  # 1, 3, 5, 7: mean 4, variance 5


def test_scores_by_running_deviation_keep_their_sign(tmp_path):
    trainer = ppo_case.trainer(tmp_path, normalize_reward="running_std")
    found = trainer.normalize_scores(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1.0, 3.0])  # deviation 1
    found = trainer.normalize_scores(torch.tensor([5.0, 7.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([5 / math.sqrt(5), 7 / math.sqrt(5)])


def test_the_parts_of_a_composed_reward_are_logged_in_training_and_evaluation(tmp_path):
    parts = [Part(FunctionReward(ppo_case.vowels), 2.0), Part(FunctionReward(lambda p, c: [1.0] * len(c), "one"), -1.0)]
    trainer = ppo_case.trainer(tmp_path, reward=CombinedReward(parts), eval_prompts=ppo_case.prompts(3))
    metrics, looked = trainer.step(), trainer.evaluate()
    assert metrics["score/mean"] == pytest.approx(2 * metrics["score/vowels/mean"] - 1)
    assert metrics["score/std"] == pytest.approx(2 * metrics["score/vowels/std"])
    assert (metrics["score/one/mean"], metrics["score/one/std"]) == (1.0, 0.0)
    for total in ("eval/score", "eval/score_greedy"):
        assert looked[total] == pytest.approx(2 * looked[f"{total}/vowels/mean"] - looked[f"{total}/one/mean"])
    assert not [name for name in ppo_case.trainer(tmp_path / "plain").step() if name.startswith("score/vowels")]


def test_plain_scores_without_normalisation(tmp_path):
    trainer = ppo_case.trainer(tmp_path, normalize_reward="none", missing_eos_penalty=0.0, reward_clip_range=None)
    scores = torch.tensor([1.0, 30.0])
    penalized = trainer.penalize_scores(scores, torch.tensor([True, False]), torch.tensor([3, 4]))
    assert torch.equal(trainer.normalize_scores(penalized), scores)


def test_experience_by_hand(tmp_path):
    trainer = ppo_case.trainer(
        tmp_path, whiten_advantages=False, kl_coef=0.5, normalize_reward="none", rollout_batch_size=1
    )
    made, metrics = trainer.make_experience(
        ppo_case.samples((2, 3), (2, 4), finished=(True, False)), torch.tensor([1.0, 2.0], dtype=torch.float64)
    )
    assert made.mask_NS.tolist() == [[False, True, True, False, False, False], [False, False, False, True, True, True]]
    kl = (made.old_logps_NS - made.ref_logps_NS)[1, 3:]
    assert torch.allclose(
        made.rewards_NS[1, 3:], -0.5 * kl + torch.tensor([0.0, 0.0, 1.0])
    )  # 2 - 1 for the missing end
    value = made.old_values_NS[1, 5]
    assert made.advantages_NS[1, 5] == pytest.approx(float(made.rewards_NS[1, 5] - value), rel=1e-5)
    assert metrics["end_rate"] == 0.5 and metrics["length/mean"] == 2.5 and metrics["score/mean"] == 1.5
    assert metrics["kl/reply"] == pytest.approx(0.0, abs=1e-6)  # the reference is a copy of the policy


def test_advantages_are_whitened_over_the_whole_batch(tmp_path):
    trainer = ppo_case.trainer(tmp_path)
    made, metrics = trainer.make_experience(
        ppo_case.samples((5, 1, 7, 3, 2, 6, 4, 7)), torch.arange(8, dtype=torch.float64)
    )
    real = made.advantages_NS[made.mask_NS]
    assert float(real.mean()) == pytest.approx(0, abs=1e-6)
    assert float(real.var(unbiased=False)) == pytest.approx(1, rel=1e-4)
    assert metrics["advantages/std"] > 0


class Events(TrainerCallback):
    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda args, state, control, **kwargs: self.seen.append((name, state.global_step))
        return super().__getattribute__(name)


def test_callbacks_get_the_standard_events(tmp_path):
    events = Events()
    trainer = ppo_case.trainer(tmp_path, callbacks=[events], num_iterations=2, save_steps=2)
    trainer.train()
    assert events.seen == [
        ("on_init_end", 0),
        ("on_train_begin", 0),
        ("on_step_begin", 0),
        ("on_step_end", 1),
        ("on_log", 1),
        ("on_step_begin", 1),
        ("on_step_end", 2),
        ("on_log", 2),
        ("on_save", 2),
        ("on_train_end", 2),
    ]


def test_callbacks_can_save_and_stop(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_save = True

    trainer = ppo_case.trainer(tmp_path, callbacks=[Stop()], num_iterations=5)
    state = trainer.train()
    assert state.global_step == 1
    assert (tmp_path / "checkpoints" / "step-1").is_dir()


def test_metrics_are_finite_and_named(tmp_path):
    trainer = ppo_case.trainer(
        tmp_path, num_iterations=2, ptx_coef=0.1, ptx_ratio=1, ptx_blocks=[[1, 2, 3, 4]] * 5, log_samples=3
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    wanted = [
        "score/mean",
        "score/std",
        "reward/mean",
        "reward/std",
        "kl/reply",
        "kl/token",
        "kl/k3_token",
        "entropy",
        "value/explained_variance",
        "advantages/std",
        "length/mean",
        "end_rate",
        "distinct",
        "distinct_1",
        "distinct_2",
        "kl/full_token",
        "memory/peak_gib",
        "policy/loss",
        "policy/clipped",
        "policy/ratio_max",
        "policy/ratio_min",
        "policy/approx_kl",
        "value/loss",
        "value/clipped",
        "ptx/loss",
        "ptx/grad_norm_ratio",
        "policy/grad_norm",
        "value/grad_norm",
        "seconds/rollout",
        "seconds/score",
        "seconds/experience",
        "seconds/update",
        "seconds/total",
        "tokens_per_second",
        "optimizer_steps",
        "lr/policy",
        "lr/critic",
    ]
    for line in lines:
        assert set(wanted) <= line.keys()
        assert all(isinstance(line[name], int | float) and math.isfinite(line[name]) for name in wanted)
        assert 0 < line["entropy"] <= math.log(259)
        assert line["kl/k3_token"] >= 0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in samples] == [1, 1, 1, 2, 2, 2]
    for line in samples:
        assert {"prompt", "reply", "score", "kl"} <= line.keys()
        texts, kls = zip(*line["tokens"], strict=True)
        assert len(texts) == line["reply_tokens"] and ("<|im_end|>" in texts[-1]) == line["finished"]
        assert sum(kls) == pytest.approx(line["kl"], abs=1e-3)


def test_a_reward_that_fails_stops_with_the_state_before_it(tmp_path):
    scores = {"broken": False}

    def reward(prompts, completions):
        return [math.nan if scores["broken"] else 1.0] * len(completions)

    trainer = ppo_case.trainer(tmp_path, reward=reward, num_iterations=4)
    trainer.step()
    trainer.state.global_step = 1
    sampler, before = trainer.sampler.state_dict(), weights(trainer.policy)
    scores["broken"] = True
    with pytest.raises(TrainingError, match=r"not finite.*iteration 2.*step-1"):
        trainer.train()
    assert torch.equal(weights(trainer.policy), before)
    assert trainer.sampler.state_dict() == sampler
    scores["broken"] = False
    again = ppo_case.trainer(tmp_path, reward=reward, num_iterations=4)
    assert again.train(resume_from_checkpoint=True).global_step == 4


def test_an_engine_that_fails_stops_with_the_state_before_it(tmp_path):
    class Broken(PPOTrainer):
        def collect(self, prompts, params=None):
            if self.state.global_step == 1:
                raise RolloutError("the server does not answer")
            return super().collect(prompts, params)

    trainer = ppo_case.trainer(tmp_path, kind=Broken, num_iterations=3)
    with pytest.raises(TrainingError, match=r"^the server does not answer \(iteration 2\); .*step-1$"):
        trainer.train()
    assert ppo_case.trainer(tmp_path, num_iterations=3).train(resume_from_checkpoint=True).global_step == 3


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it(tmp_path):
    class Broken(PPOTrainer):
        def policy_loss(self, logps_BS, batch):
            loss, stats = super().policy_loss(logps_BS, batch)
            return loss * (math.nan if self.optimizer_steps == 1 else 1.0), stats

    trainer = ppo_case.trainer(tmp_path, kind=Broken)
    with pytest.raises(TrainingError, match=r"gradient of the policy loss is not finite in iteration 1.*failed"):
        trainer.train()
    assert trainer.optimizer_steps == 1
    assert all(weights(model).isfinite().all() for model in (trainer.policy, trainer.critic))
    assert (tmp_path / "failed" / "step-0" / "ppo_state.pt").is_file()
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_end_token_finishes_a_reply(tmp_path):
    script = {0: [5, 258, 9], 1: [5, 256, 9], 2: [5, 6, 7, 8, 9]}
    engine = ScriptedEngine(lambda prompt, number: script[number])
    trainer = ppo_case.trainer(
        tmp_path, engine=engine, rollout={"num_generations": 3, "max_completion_length": 4}, num_mini_batches=3
    )
    samples = trainer.collect(trainer.prompts[:1])
    assert samples.reply_ids == ((5, 258), (5, 256), (5, 6, 7, 8))
    assert samples.finished == (True, False, False)
    assert [sample.finished for sample in samples.for_reward()] == [True, False, False]


def test_the_engine_learns_of_new_weights_once_an_iteration(tmp_path):
    engine = ScriptedEngine(lambda prompt, number: [7 + number, 258])
    trainer = ppo_case.trainer(tmp_path, engine=engine, critic_warmup_steps=2)
    trainer.step()
    assert engine.weight_version == 0
    trainer.step()
    assert engine.weight_version == trainer.policy_version == 2


def test_a_reward_with_another_tokenizer_gets_text_alone(tmp_path):
    class Foreign:
        name, tokenizer = "foreign", ppo_case.byte_tokenizer()

        def score(self, samples):
            self.seen = samples
            return [0.0] * len(samples)

    equal, other = Foreign(), Foreign()
    other.tokenizer = ppo_case.byte_tokenizer()
    other.tokenizer.add_tokens(["new"])
    for reward, ids in ((equal, True), (other, False)):
        trainer = ppo_case.trainer(tmp_path, reward=reward)
        trainer.score(trainer.collect(trainer.prompts[:1]))
        assert all((sample.completion_ids is not None) == ids for sample in reward.seen)


def test_unequal_splits_are_refused(tmp_path):
    with pytest.raises(BatchSplitError, match=r"8 responses cannot be cut into ppo\.num_mini_batches = 3"):
        ppo_case.trainer(tmp_path, num_mini_batches=3)


def test_evaluate_gives_score_kl_and_entropy(tmp_path):
    trainer = ppo_case.trainer(tmp_path, eval_prompts=ppo_case.prompts(3), num_iterations=2)
    trainer.train()
    history = [line for line in trainer.state.log_history if "eval/score" in line]
    assert [line["step"] for line in history] == [0]  # before; every_steps is not set
    assert history[0]["eval/kl"] == pytest.approx(0, abs=1e-5)
    after = trainer.evaluate(num_samples=4)
    assert after["eval/kl"] > 0.01 and 0 < after["eval/entropy"] < math.log(259)
    assert after == trainer.evaluate(num_samples=4)


def test_a_reward_that_fails_stops_the_evaluation_of_every_rank(tmp_path):
    trainer = ppo_case.trainer(tmp_path, reward=lambda prompts, completions: [math.nan] * len(prompts))
    with pytest.raises(TrainingError, match=r"evaluation after iteration 0"):
        trainer.evaluate(ppo_case.prompts(3))


def test_an_earlier_precision_of_the_process_is_forgotten(tmp_path):
    for precision in ("bf16", "no"):
        accelerator = make_accelerator(precision)
        assert accelerator.mixed_precision == precision
        trainer = ppo_case.trainer(tmp_path / precision, kind=Ratios, accelerator=accelerator)
        trainer.step()
        assert all(ratio == 1 for ratio in trainer.ratios[0])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.policy.parameters)


def test_accumulation_steps_of_an_accelerate_config_do_not_scale_the_losses(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")  # what `accelerate launch` sets from a config
    accelerator = make_accelerator()
    weight = torch.nn.Parameter(torch.tensor(1.0))
    accelerator.backward(3.0 * weight)
    assert float(weight.grad) == 3.0


def test_gradient_checkpointing_learns_the_same(tmp_path):
    learnt = []
    for checkpointing in (False, True):
        models = {"policy_model": ppo_case.policy(), "critic_model": ppo_case.critic()}
        for model in models.values() if checkpointing else ():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trainer = ppo_case.trainer(tmp_path / str(checkpointing), **models)
        trainer.step()
        assert trainer.policy.raw.training == checkpointing
        learnt.append(weights(trainer.policy))
    assert torch.allclose(learnt[0], learnt[1], atol=1e-6)


def test_ppo_raises_the_reward(tmp_path):
    class LowBytes:
        name = "low_bytes"

        def score(self, samples):
            return [4 * sum(token < 128 for token in one.completion_ids) / len(one.completion_ids) for one in samples]

    trainer = ppo_case.trainer(
        tmp_path,
        reward=LowBytes(),
        critic_model=ppo_case.critic(head_scale=0.0),
        num_iterations=10,
        rollout_batch_size=16,
        micro_batch_size=16,
        critic_warmup_steps=4,
        missing_eos_penalty=0.0,
        kl_coef=0.02,
    )
    history = [line["score/mean"] for line in trainer.train().log_history]
    assert sum(history[-2:]) / 2 > history[0] + 0.4
    assert trainer.state.log_history[0]["value/explained_variance"] == pytest.approx(0, abs=0.1)


def more_passes(other, one) -> int:
    """How many passes more the policy makes in the `other` run, which learns and logs the same to the bit."""
    counts, logs = [], []
    for trainer in (one, other):
        passes = []
        trainer.policy.raw.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        trainer.train()
        counts.append(len(passes))
        lines = [line for name in ("metrics", "samples") for line in (trainer.output_dir / f"{name}.jsonl").open()]
        differ = ("time", "seconds", "tokens_per", "memory")
        logs.append([{k: v for k, v in json.loads(line).items() if not k.startswith(differ)} for line in lines])
    assert torch.equal(weights(one.policy), weights(other.policy)) and logs[0] == logs[1]
    return counts[1] - counts[0]


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"num_mini_batches": 1, "micro_batch_size": 8}, 3),
        # one begins with the policy
        pytest.param({"num_mini_batches": 2, "critic_warmup_steps": 3, "entropy_coef": 0.1}, 1, marks=pytest.mark.slow),
        pytest.param(
            {"advantage": "grpo", "kl_in": "loss", "policy_support": "nucleus", "micro_batch_size": 4},
            3,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_first_micro_batch_passes_the_policy_once_and_learns_the_same_to_the_bit(tmp_path, options, saved):
    keeps, other = (ppo_case.trainer(tmp_path / name, num_iterations=3, **options) for name in ("keeps", "other"))
    other.model_passes._may_keep = lambda: False
    assert more_passes(other, keeps) == saved


@pytest.mark.parametrize(
    "options",
    [
        {"advantage": "grpo", "kl_in": "loss", "kl_target": 0.1, "entropy_coef": 0.1, "log_samples": 3},
        pytest.param(
            {"kl_coef": 0.0, "policy_support": "nucleus", "importance_sampling_correction": "token"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_optimizer_step_needs_no_pass_of_the_policy_before_it_and_learns_the_same_to_the_bit(tmp_path, options):
    options = options | {"num_mini_batches": 1, "micro_batch_size": 2, "num_iterations": 3}
    late = ppo_case.trainer(tmp_path / "late", **options)
    asks = ppo_case.trainer(tmp_path / "asks", guards={"max_kl": 1e9}, **options)
    assert more_passes(asks, late) == 3 * 3  # of four micro-batches an iteration, the first of which is kept anyway


class ReadsTheKL(PPOTrainer):
    def shape_rewards(self, normalized_N, kl_NS, mask_NS):
        self.kls = [*getattr(self, "kls", []), float(kl_NS[mask_NS].abs().max())]
        return super().shape_rewards(normalized_N, kl_NS, mask_NS)


def test_who_asks_what_the_policy_says_before_the_update_is_told(tmp_path):
    options = {"num_mini_batches": 1, "kl_in": "loss", "num_iterations": 2}
    reads = ppo_case.trainer(tmp_path / "reads", kind=ReadsTheKL, **options)
    reads.train()
    assert reads.kls[0] == 0 and reads.kls[1] > 0
    asks = ppo_case.trainer(tmp_path / "asks", **options)
    made, metrics = asks.make_experience(ppo_case.samples((2, 3, 3, 2) * 2), torch.arange(8.0))
    assert asks._asks_policy_late and "kl/reply" in metrics and (made.old_logps_NS[made.mask_NS] < 0).all()
    asks.update = lambda experience: PPOTrainer.update(asks, experience)
    assert not reads._asks_policy_late and not asks._asks_policy_late


def test_a_kept_pass_is_taken_once_and_not_by_other_weights():
    weight, tokens = torch.zeros(2), TokenBatch.from_ids([[1]], [[2]])
    for change, said in ((lambda: None, ["said", None]), (lambda: weight.add_(1), [None, None])):
        kept = KeptPass(tokens, torch.tensor([3, 1]), "said", [weight])
        change()
        assert [kept.take(), kept.take()] == said


def test_an_experience_with_other_tokens_or_a_copy_of_it_brings_no_kept_pass(tmp_path):
    trainer = ppo_case.trainer(tmp_path, num_mini_batches=1)
    given = trainer.collect(trainer.prompts[:4])
    made, _ = trainer.make_experience(given, trainer.score(given).total_N)
    rows_B = made.kept.rows_B
    assert made.rows(rows_B).kept is made.kept and made.rows(rows_B.flip(0)).kept is None
    assert replace(made, tokens=made.tokens.rows(torch.arange(8).flip(0))).rows(rows_B).kept is None
    copied = copy.deepcopy(made)  # tensors with a graph cannot be
    assert copied.kept.take() is None and made.kept.take() is not None
