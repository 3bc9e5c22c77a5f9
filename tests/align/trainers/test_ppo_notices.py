"""The comparison with the independent PPO would not pass if an option were ignored on either side."""

from dataclasses import replace

import pytest

from tests.align.trainers import ppo_comparison, ppo_options
from tests.align.trainers.ppo_comparison import Comparison

FLIPS = [
    *(("reward", key, value) for key in ("normalize_reward",) for value in ("none", "running_mean", "running_std")),
    *(("reward", key, value) for key in ("kl_estimator",) for value in ("k1", "k2")),
    *(("reward", key, value) for key in ("importance_sampling_correction",) for value in ("none", "sequence")),
    ("reward", "kl_in", "loss"),
    ("reward", "missing_eos_penalty", 0.8),
    ("reward", "length_penalty", 0.2),
    ("reward", "length_penalty_free", 4),
    ("reward", "reward_clip_range", None),
    ("reward", "kl_coef", 0.05),
    ("reward", "kl_target", None),
    ("reward", "kl_horizon", 30),
    ("reward", "gamma", 1.0),
    ("reward", "lam", 0.95),
    ("reward", "critic_lam", None),
    ("reward", "whiten_advantages", False),
    ("reward", "loss_aggregation", "token"),
    ("reward", "policy_support", "full"),
    ("reward", "importance_sampling_cap", 1.3),
    ("reward", "cliprange", 0.2),
    ("reward", "dual_clip", None),
    ("reward", "entropy_coef", 0.0),
    ("reward", "cliprange_value", None),
    ("reward", "vf_coef", 1.0),
    ("reward", "ptx_grad_norm_ratio", 0.12),
    ("reward", "ptx_max_z_coef", 0.0),
    ("loss", "kl_estimator", "k3"),
    ("loss", "mask_truncated_completions", False),
    ("loss", "kl_in", "reward"),
]


class Noticed(Exception):
    """The comparison found a difference."""


class Noticing(Comparison):
    def _keep(self, name, error):
        if error > 1e-6:
            raise Noticed(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}
    for name in ppo_options.RUNS:
        made[name] = ppo_comparison.trainer(tmp_path_factory.mktemp(name), **ppo_options.everything(name))
        made[name].train()
    return made


@pytest.mark.parametrize("name", ppo_options.RUNS)
def test_everything_at_once(runs, name):
    assert Comparison(runs[name]).wrong == {}


@pytest.mark.parametrize(("name", "key", "value"), FLIPS)
def test_the_comparison_notices_every_option(runs, name, key, value):
    """A reference with one other option disagrees: each of them takes part in what is compared."""
    with pytest.raises((Noticed, AssertionError)):
        Noticing(runs[name], replace(ppo_comparison.settings_of(runs[name]), **{key: value}))
