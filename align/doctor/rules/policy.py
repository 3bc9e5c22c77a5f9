"""Rules about the policy's updates: too large, too small, and what they do to its entropy; the ptx gradient."""

from __future__ import annotations

from align.doctor.history import History
from align.doctor.rule import Evidence, rule, seen

CLIPPED, APPROX_KL = 0.3, 0.1
VIOLENT = 1.0  # nats a token in one iteration
FIRST_STEP = 5.0  # times the usual step
STILL_KL = 1e-4  # nats a token
COLLAPSED, EXPLODED = 0.25, 2.0  # times the entropy at the start
DROWNED, DROWNING = 0.05, 5.0
LEFT_OUT = 0.5  # of the steps


@rule(
    "updates-too-large",
    "problem",
    "The policy's updates are too large",
    needs=("policy/clipped", "policy/approx_kl"),
    least=2,
    trained=True,
    causes=("the policy's learning rate is large", "too many epochs or minibatches on the same replies"),
    changes=(
        "ppo.policy.learning_rate lower",
        "ppo.num_ppo_epochs 1, fewer ppo.num_mini_batches, or ppo.target_kl to end such an update early",
    ),
)
def updates_too_large(history: History) -> Evidence | None:
    """In a fifth of the iterations or more, or once so much that it may have been the end of the policy."""
    clipped, approx_kl = history.series("policy/clipped"), history.series("policy/approx_kl")
    large = {*clipped.where(lambda share: share > CLIPPED).steps, *approx_kl.where(lambda kl: kl > APPROX_KL).steps}
    if len(large) < max(2, 0.2 * len(clipped)) and max(approx_kl.values) <= VIOLENT:
        return None
    figures = {"policy__clipped": clipped.median, "policy__approx_kl": approx_kl.median}
    ratio = history.series("policy/ratio_max")
    if len(ratio):
        figures["policy__ratio_max"] = max(ratio.values)
    over = f"over {CLIPPED:g} clipped or {APPROX_KL:g} nats"
    medians = f"medians: policy/clipped {clipped.median:.2g}, policy/approx_kl {approx_kl.median:.2g}"
    largest = f"; largest ratio {max(ratio.values):.3g}" if len(ratio) else ""
    words = f"in {len(large)} of {len(clipped)} iterations {over} ({medians}{largest}); "
    words += f"the largest policy/approx_kl is {max(approx_kl.values):.3g}"
    return seen(words, clipped, **figures)


@rule(
    "first-step-large",
    "note",
    "The policy's first update is much larger than the others",
    needs=("policy/approx_kl",),
    trained=True,
    causes=("Adam's first steps have the size of the learning rate whatever the gradient is",),
    changes=("ppo.policy.warmup_steps above 0",),
)
def first_step_large(history: History) -> Evidence | None:
    """And large enough to matter."""
    approx_kl = history.series("policy/approx_kl")
    first, usual = approx_kl.values[0], approx_kl.part(1).median
    if first <= APPROX_KL / 5 or first <= FIRST_STEP * usual:
        return None
    words = f"policy/approx_kl is {first:.3g} at {{span}}, later {usual:.2g} (median)"
    return seen(words, approx_kl.part(0, 1), policy__approx_kl=first)


@rule(
    "policy-still",
    "problem",
    "The policy does not move",
    needs=("kl/k3_token", "score/mean"),
    trained=True,
    causes=(
        "the policy's learning rate is small",
        "the advantages are zero, or noise (equal rewards, a reward that cannot tell the replies apart)",
        "a kl_coef that outweighs the reward",
    ),
    changes=(
        "ppo.policy.learning_rate higher (ten times, to see)",
        "look at score/std and advantages/std",
        "ppo.kl_coef lower",
    ),
)
def policy_still(history: History) -> Evidence | None:
    """Where it began, by its distance from the reference, and no better by its score."""
    late, score = history.series("kl/k3_token").last(1 / 3), history.series("score/mean").growth()
    if late.mean >= STILL_KL or score.up:
        return None
    figures = {"kl__k3_token": late.mean}
    updates = ""
    for key in ("policy/approx_kl", "policy/clipped"):
        if len(series := history.series(key)):
            figures[key.replace("/", "__")] = series.mean
            updates += f", {key} {series.mean:.2g}"
    rate = history.amount("policy.learning_rate")
    words = f"kl/k3_token is {late.mean:.2g} nats over {{span}}{updates}; "
    words += f"score/mean {score.before:.3g} -> {score.after:.3g}"
    return seen(words + (f"; the learning rate is {rate:g}" if rate is not None else ""), late, **figures)


@rule(
    "entropy-collapse",
    "problem",
    "The policy's entropy collapses",
    needs=("entropy",),
    causes=("the reward pays for one kind of reply", "updates are large, or the KL to the reference costs little"),
    changes=("ppo.kl_coef higher", "ppo.entropy_coef above 0", "ppo.policy.learning_rate lower"),
)
def entropy_collapse(history: History) -> Evidence | None:
    """To a quarter of what it was."""
    first, late = history.series("entropy").first(1 / 5), history.series("entropy").last(1 / 5)
    if late.mean >= COLLAPSED * first.mean:
        return None
    return seen(
        f"{first.mean:.3g} -> {late.mean:.2g} nats a token ({first.span}, then {{span}})", late, entropy=late.mean
    )


@rule(
    "entropy-explosion",
    "problem",
    "The policy's entropy explodes",
    needs=("entropy",),
    causes=("entropy_coef is large", "updates destroy what the policy knew"),
    changes=("ppo.entropy_coef lower", "ppo.policy.learning_rate lower", "ppo.kl_coef higher"),
)
def entropy_explosion(history: History) -> Evidence | None:
    """To twice what it was and by half a nat, which a policy that was sure may pass unharmed."""
    first, late = history.series("entropy").first(1 / 5), history.series("entropy").last(1 / 5)
    if late.mean <= max(EXPLODED * first.mean, first.mean + 0.5):
        return None
    return seen(
        f"{first.mean:.3g} -> {late.mean:.3g} nats a token ({first.span}, then {{span}})", late, entropy=late.mean
    )


@rule(
    "ptx-drowned",
    "note",
    "The pretraining gradient hardly counts",
    needs=("ptx/grad_norm_ratio",),
    least=3,
    trained=True,
    causes=("ptx_coef is small for this model and these documents",),
    changes=("ppo.ptx_coef: auto, or higher", "ppo.ptx_coef: 0, which saves its time"),
)
def ptx_drowned(history: History) -> Evidence | None:
    """Beside PPO's, by its norm."""
    ratio = history.series("ptx/grad_norm_ratio")
    if ratio.median >= DROWNED:
        return None
    words = f"its norm is {ratio.median:.2g} of PPO's (median over {{span}})"
    return seen(words, ratio, ptx__grad_norm_ratio=ratio.median)


@rule(
    "ptx-drowning",
    "problem",
    "The pretraining gradient drowns PPO's",
    needs=("ptx/grad_norm_ratio",),
    least=3,
    trained=True,
    causes=("ptx_coef is large for this model and these documents",),
    changes=("ppo.ptx_coef: auto, or lower",),
)
def ptx_drowning(history: History) -> Evidence | None:
    """By its norm."""
    ratio = history.series("ptx/grad_norm_ratio")
    if ratio.median <= DROWNING:
        return None
    words = f"its norm is {ratio.median:.3g} times PPO's (median over {{span}})"
    return seen(words, ratio, ptx__grad_norm_ratio=ratio.median)


@rule(
    "steps-left-out",
    "note",
    "Most updates are ended early, by target_kl",
    needs=("steps_left_out",),
    settings=("target_kl", "num_mini_batches", "num_ppo_epochs"),
    least=1,
    trained=True,
    causes=("the updates are larger than target_kl allows: replies are paid for and not learned from",),
    changes=(
        "ppo.policy.learning_rate lower",
        "ppo.num_ppo_epochs or ppo.num_mini_batches fewer",
        "ppo.target_kl larger",
    ),
)
def steps_left_out(history: History) -> Evidence | None:
    """More than half of the optimizer steps are not taken."""
    left_out = history.series("steps_left_out")
    planned = (history.amount("num_ppo_epochs") or 1) * (history.amount("num_mini_batches") or 1)
    if left_out.mean <= LEFT_OUT * planned:
        return None
    words = f"{left_out.mean:.3g} of {planned:g} steps an iteration are left out over {{span}}"
    return seen(f"{words}, target_kl {history.amount('target_kl'):g}", left_out, steps_left_out=left_out.mean)


@rule(
    "steps-not-finite",
    "problem",
    "Optimizer steps were skipped because a gradient was not finite",
    needs=("steps_left_out",),  # logged by the same versions; steps_not_finite itself only where there were some
    least=1,
    causes=("an overflow: a learning rate that is too large, a reward that explodes, fp16",),
    changes=(
        "ppo.policy.learning_rate lower",
        "ppo.critic.learning_rate lower",
        "ppo.guards.non_finite: stop, to see the first",
    ),
)
def steps_not_finite(history: History) -> Evidence | None:
    """Any (`guards.non_finite: skip`)."""
    skipped = history.series("steps_not_finite")
    if not len(skipped):
        return None
    words = f"{sum(skipped.values):g} steps in {len(skipped)} iterations, {{span}}"
    return seen(words, skipped, steps_not_finite=sum(skipped.values))
