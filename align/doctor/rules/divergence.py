"""Rules about distances: policy to reference, sampler to scored policy, engine to trainer."""

from __future__ import annotations

from align.doctor.history import History
from align.doctor.rule import Evidence, rule, seen

NEGATIVE_SHARE = 0.1  # of k3, which is never negative: less below 0 than that is rounding
FAR_TOKEN, FAR_REPLY, TOO_FAR_REPLY = 0.5, 10.0, 100.0  # nats
LEAST_MASS = 0.7
APART = 0.05  # nats a token: what bf16 and other kernels alone do not reach
TRUNCATED = 0.05
LEAST_CAP = 1.2  # below it, rounding alone reaches the cap


@rule(
    "negative-kl",
    "problem",
    "The KL to the reference is negative",
    needs=("kl/token",),
    trained=True,
    causes=(
        "replies are sampled from another distribution than the one that is scored (top_p, top_k or temperature)",
        "the engine's weights or arithmetic differ from the trainer's",
    ),
    changes=(
        "ppo.rollout.top_p nearer to 1, top_k 0, temperature 1",
        "look at engine/logp_diff_mean",
    ),
)
def negative_kl(history: History) -> Evidence | None:
    """k1 is an unbiased estimate of a KL, which is not negative, only where what was sampled is what is scored."""
    late, k3 = history.series("kl/token").last(1 / 2), history.series("kl/k3_token").last(1 / 2)
    floor = NEGATIVE_SHARE * k3.mean if len(k3) else 0.0
    if late.mean + 3 * late.error >= 0 or -late.mean <= floor:
        return None
    return seen(f"kl/token is {late.mean:.3g} nats on average over {{span}}", late, kl__token=late.mean)


@rule(
    "kl-runaway",
    "problem",
    "The policy has run away from its reference",
    needs=("kl/token", "kl/reply"),
    trained=True,
    causes=(
        "kl_coef is small for the size of the reward",
        "the learning rate is large",
        "the reward pays for strange text",
    ),
    changes=(
        "ppo.kl_coef higher, or ppo.kl_target to have it steered",
        "ppo.policy.learning_rate lower",
        "ppo.guards.max_kl to stop such a run; read samples.jsonl",
    ),
)
def kl_runaway(history: History) -> Evidence | None:
    """Far at the end: a token or a reply."""
    token, reply = (history.series(key) for key in ("kl/token", "kl/reply"))
    late, a_token = reply.last(1 / 5), token.last(1 / 5).mean
    if late.mean <= (FAR_REPLY if a_token > FAR_TOKEN else TOO_FAR_REPLY):
        return None
    way = "rises" if late.mean > reply.last(2 / 5).mean else "falls"
    words = f"kl/reply is {late.mean:.3g} nats over {{span}}, {a_token:.2g} a token, and {way}"
    return seen(words, late, kl__reply=late.mean, kl__token=a_token)


@rule(
    "kl-off-target",
    "note",
    "The KL controller does not hold its target",
    needs=("kl/reply", "kl_coef"),
    settings=("kl_target",),
    trained=True,
    causes=("kl_horizon is long for this run", "the target is out of reach of this reward and learning rate"),
    changes=("ppo.kl_horizon shorter (it counts replies)", "ppo.kl_target near the KL the run has anyway"),
)
def kl_off_target(history: History) -> Evidence | None:
    """By more than a factor of two at the end."""
    late, target = history.series("kl/reply").last(1 / 3), history.amount("kl_target") or 0.0
    if target / 2 <= late.mean <= 2 * target:
        return None
    coef = history.series("kl_coef").values[-1]
    words = f"kl/reply is {late.mean:.3g} over {{span}}, kl_target {target:g}, kl_coef {coef:.3g} at the end"
    return seen(words, late, kl__reply=late.mean, kl_coef=coef)


@rule(
    "kept-mass-low",
    "problem",
    "Sampling leaves out much of the policy's distribution",
    needs=("kept_mass/mean",),
    least=1,
    causes=("top_p or top_k is small", "the policy is flat, so that top_k keeps little of it"),
    changes=("ppo.rollout.top_p nearer to 1, top_k 0", "ppo.policy_support: nucleus, if the truncation is wanted"),
)
def kept_mass_low(history: History) -> Evidence | None:
    """Then the policy gradient is one of another distribution, and the KL is biased."""
    late = history.series("kept_mass/mean").last(1 / 3)
    if late.mean >= LEAST_MASS:
        return None
    words = f"of the mass at each drawn token, truncation kept {late.mean:.0%} on average over {{span}}"
    return seen(words, late, kept_mass__mean=late.mean)


@rule(
    "engine-apart",
    "problem",
    "Engine and trainer give the same tokens different probabilities",
    needs=("engine/logp_diff_mean", "importance/truncated"),
    either=True,
    least=1,
    causes=(
        "the engine runs in another precision or with other kernels",
        "the engine holds older weights, another chat template or another temperature",
        "with ppo.rollout.overlap: the policy moves far in so many iterations",
    ),
    changes=(
        "ppo.importance_sampling_correction: token",
        "the engine's dtype as the trainer's; ppo.rollout.engine: hf to see whether the engine is the cause",
        "with ppo.rollout.overlap: ppo.policy.learning_rate lower, or overlap smaller, or 0",
    ),
)
def engine_apart(history: History) -> Evidence | None:
    """More than rounding explains, or many importance weights at their cap; with `rollout.overlap` the weights are
    iterations apart by design, so the cap alone tells."""
    difference, truncated = (history.series(key) for key in ("engine/logp_diff_mean", "importance/truncated"))
    if len(difference) and not history.setting("rollout.overlap") and (late := difference.last(1 / 3)).mean > APART:
        words = f"the log-probabilities differ by {late.mean:.3g} nats a token over {{span}}"
        return seen(words, late, engine__logp_diff_mean=late.mean)
    cap = history.amount("importance_sampling_cap") or LEAST_CAP
    if len(truncated) and cap >= LEAST_CAP and (late := truncated.last(1 / 3)).mean > TRUNCATED:
        words = f"{late.mean:.0%} of the importance weights stand at their cap over {{span}}"
        return seen(words, late, importance__truncated=late.mean)
    return None
