"""The options of PPO by factor, and a small set of combinations in which every two levels of two factors meet."""

from __future__ import annotations

import itertools
import random
from typing import Any

Row = dict[str, Any]

ENDS = {
    "subtract": {},
    "none": {"missing_eos_penalty": 0.0},
    "masked": {"mask_truncated_completions": True},
}
FACTORS: dict[str, dict[str, Row]] = {
    "kl in": {"reward": {}, "loss": {"kl_in": "loss"}},
    "estimator": {kind: {"kl_estimator": kind} for kind in ("k1", "k2", "k3")},
    "end": ENDS,
    "minibatches": {str(n): {"num_mini_batches": n} for n in (1, 2, 4)},
    "micro": {str(n): {"micro_batch_size": n} for n in (1, 3, 8)}
    | {"30 tokens": {"micro_batch_size": None, "micro_batch_tokens": 30}},
    "epochs": {"1": {}, "2": {"num_ppo_epochs": 2}},
    "warm-up": {"none": {}, "one step": {"critic_warmup_steps": 1}},
    "normalize": {
        kind: {"normalize_reward": kind} for kind in ("none", "running_mean", "running_std", "running_mean_std")
    },
    "reward clip": {"10": {}, "none": {"reward_clip_range": None}, "0.6": {"reward_clip_range": 0.6}},
    "length": {"none": {}, "penalty": {"length_penalty": 0.3, "length_penalty_free": 3}},
    "decay": {"plain": {}, "decoupled": {"gamma": 0.97, "lam": 0.8, "critic_lam": 1.0}},
    "whiten": {"yes": {}, "no": {"whiten_advantages": False}},
    "aggregation": {"token": {}, "sequence": {"loss_aggregation": "sequence"}},
    "policy clip": {"0.2": {}, "dual": {"cliprange": 0.05, "dual_clip": 1.1}},
    "value clip": {"0.15": {}, "none": {"cliprange_value": None, "vf_coef": 0.7}},
    "entropy": {"none": {}, "bonus": {"entropy_coef": 0.05}},
    "controller": {"none": {}, "adaptive": {"kl_coef": 0.2, "kl_target": 3.0, "kl_horizon": 20}},
    "early stop": {"none": {}, "target_kl": {"target_kl": 0.02}},
    "support": {"full": {}, "nucleus": {"policy_support": "nucleus"}},
    "correction": {
        "none": {},
        "token": {"importance_sampling_correction": "token", "importance_sampling_cap": 1.3},
        "sequence": {"importance_sampling_correction": "sequence", "importance_sampling_cap": 1.5},
    },
    "ptx": {"none": {}, "max z": {"ptx_coef": 0.3, "ptx_max_z_coef": 0.05}, "auto": {"ptx_coef": "auto"}},
    "average": {"none": {}, "ema": {"ema_decay": 0.8}},
}


def pairs(levels: dict[str, str]) -> set[tuple[tuple[str, str], ...]]:
    """Every two (factor, level) of a combination."""
    return set(itertools.combinations(sorted(levels.items()), 2))


def wanted(factors: dict[str, dict[str, Row]]) -> set[tuple[tuple[str, str], ...]]:
    """Every two levels of two factors."""
    single = [(factor, level) for factor in sorted(factors) for level in factors[factor]]
    return {tuple(sorted(pair)) for pair in itertools.combinations(single, 2) if pair[0][0] != pair[1][0]}


def covering(factors: dict[str, dict[str, Row]], seed: int = 0) -> list[dict[str, str]]:
    """Combinations, greedily few, that hold every wanted pair."""
    draw, missing, rows = random.Random(seed), wanted(factors), []
    while missing:
        candidates = [_complete(dict(pair), factors, missing, draw) for pair in draw.choices(sorted(missing), k=8)]
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append({factor: best[factor] for factor in factors})
    return rows


def _complete(levels: dict[str, str], factors: dict[str, dict[str, Row]], missing: set, draw: random.Random):
    for factor in draw.sample(sorted(factors.keys() - levels.keys()), len(factors) - len(levels)):
        fits = list(factors[factor])
        draw.shuffle(fits)
        own = levels.items()
        levels[factor] = max(
            fits, key=lambda level: sum(tuple(sorted(((factor, level), other))) in missing for other in own)
        )
    return levels


def changes(levels: dict[str, str], factors: dict[str, dict[str, Row]] = FACTORS) -> Row:
    """The recipe's keys of a combination."""
    return {key: value for factor, level in levels.items() for key, value in factors[factor][level].items()}


EVERYTHING: Row = {
    "num_mini_batches": 2,  # the first moves the ratios of the second past every clip
    "micro_batch_size": 3,
    "num_ppo_epochs": 2,
    "num_iterations": 2,
    "length_penalty": 0.3,
    "length_penalty_free": 3,
    "normalize_reward": "running_mean_std",
    "reward_clip_range": 1.0,
    "gamma": 0.97,
    "lam": 0.8,
    "critic_lam": 0.9,
    "loss_aggregation": "sequence",
    "policy_support": "nucleus",
    "importance_sampling_correction": "token",
    "importance_sampling_cap": 1.2,
    "cliprange": 0.05,
    "dual_clip": 1.1,
    "entropy_coef": 0.05,
    "critic_warmup_steps": 2,
    "vf_coef": 0.7,
    "ptx_coef": "auto",
    "ptx_grad_norm_ratio": 0.1,
    "ptx_max_z_coef": 0.05,
    "kl_target": 3.0,
    "kl_horizon": 20,
}
RUNS: dict[str, Row] = {
    "reward": {"kl_estimator": "k3", "missing_eos_penalty": 0.7, "num_iterations": 3},
    "loss": {"kl_in": "loss", "kl_estimator": "k2", "mask_truncated_completions": True},
}


def everything(name: str) -> Row:
    """All options at once that can be on together, with the KL in the `reward` or in the `loss`."""
    return EVERYTHING | RUNS[name]
