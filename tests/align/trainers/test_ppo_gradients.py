"""`PPOTrainer` against the independent PPO, through the real collating, packing and minibatches; float64."""

from dataclasses import fields
from itertools import combinations, product

import pytest
import torch

from tests.align.trainers import ppo_comparison, ppo_options
from tests.align.trainers.ppo_comparison import Comparison
from tests.align.trainers.ppo_reference import Settings

ROWS = ppo_options.covering(ppo_options.FACTORS, seed=1)


def compared(folder, iterations=2, **options) -> Comparison:
    trainer = ppo_comparison.trainer(folder, num_iterations=iterations, **options)
    trainer.train()
    return Comparison(trainer)


def test_every_two_levels_of_two_options_meet():
    factors = ppo_options.FACTORS
    missing = [
        {a: x, b: y}
        for a, b in combinations(factors, 2)
        for x, y in product(factors[a], factors[b])
        if not any((row[a], row[b]) == (x, y) for row in ROWS)
    ]
    assert missing == []
    varied = {key for levels in factors.values() for keys in levels.values() for key in keys}
    assert {one.name for one in fields(Settings)} - varied == {"temperature", "ptx_grad_norm_ratio"}


SOME = [pytest.param(row, id=str(at), marks=[pytest.mark.slow] * (at % 3 > 0)) for at, row in enumerate(ROWS)]


@pytest.mark.parametrize("levels", SOME)
def test_every_optimizer_step_under_all_options(levels, tmp_path):
    found = compared(tmp_path, **ppo_options.changes(levels))
    assert found.wrong == {}
    assert found.errors.keys() >= {"policy gradient", "value gradient", "advantages"}


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters + trainer.critic.parameters])


def test_micro_batches_do_not_change_what_is_learnt(tmp_path):
    weights = []
    cuts = [
        {"micro_batch_size": 1},
        {"micro_batch_size": 3},
        {"micro_batch_size": 8},
        {"micro_batch_size": None, "micro_batch_tokens": 30},
    ]
    for at, cut in enumerate(cuts):
        trainer = ppo_comparison.trainer(tmp_path / str(at), num_mini_batches=1, num_iterations=3, **cut)
        start = weights_of(trainer)
        trainer.train()
        weights.append(weights_of(trainer))
    assert (weights[0] - start).abs().max() > 1e-2
    assert max(float((found - weights[0]).abs().max()) for found in weights[1:]) < 1e-8


@pytest.mark.parametrize("name", ppo_options.RUNS)
def test_garbage_at_padded_positions_changes_nothing(tmp_path, name):
    def run(folder, spoil):
        trainer = ppo_comparison.trainer(folder, **ppo_options.everything(name) | {"critic_warmup_steps": 1})
        given = trainer.collect(())
        made = trainer.make_experience(given, trainer.score(given).total_N)[0]
        if spoil:
            padded = torch.arange(made.tokens.input_ids_NT.shape[1])[None] >= made.tokens.lengths_N[:, None]
            made.tokens.input_ids_NT[padded] = 123
            for field in fields(made):
                tensor = getattr(made, field.name)
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() > 1:
                    tensor[~made.mask_NS] = float("nan")
        metrics = trainer.update(made)
        return weights_of(trainer), metrics

    clean, clean_metrics = run(tmp_path / "a", False)
    spoilt, spoilt_metrics = run(tmp_path / "b", True)
    assert "policy/loss" in clean_metrics and torch.equal(clean, spoilt)
    assert clean_metrics == spoilt_metrics
