"""Rules about the critic."""

from __future__ import annotations

from align.doctor.history import History
from align.doctor.rule import Evidence, rule, seen

CLIPPED = 0.3
VANISHED = 0.1  # times the usual deviation of the returns: then they are as good as equal
LEARNED = 0.0  # explained variance: at 0 the critic knows no more than the mean
NO_GRADIENT = 1e-8


@rule(
    "value-clip-saturated",
    "problem",
    "The clip of the value loss stops the critic from learning",
    needs=("value/clipped",),
    causes=(
        "cliprange_value is small for the size of the returns: it is an absolute distance, in units of the reward",
    ),
    changes=("ppo.cliprange_value about the returns' deviation, or null", "ppo.normalize_reward: running_mean_std"),
)
def value_clip_saturated(history: History) -> Evidence | None:
    """For a fifth of the run in a row, and at least five iterations."""
    clipped = history.series("value/clipped")
    long = clipped.stretch(lambda share: share > CLIPPED)
    if len(long) < max(5, 0.2 * len(clipped)):
        return None
    words = f"value/clipped is {long.mean:.0%} of the tokens on average over {{span}}"
    returns, clip = history.series("returns/std"), history.amount("cliprange_value")
    if len(returns) and clip is not None:
        words += f"; returns/std is {returns.median:.3g}, cliprange_value {clip:g}"
    return seen(words, long, value__clipped=long.mean)


@rule(
    "critic-dead",
    "problem",
    "The critic explains nothing of the returns",
    needs=("value/explained_variance",),
    trained=True,
    causes=(
        "the critic's learning rate is small, or no gradient reaches it",
        "its warm-up is short",
        "the returns are noise to it (a reward that does not depend on the reply)",
    ),
    changes=(
        "ppo.critic.learning_rate higher",
        "ppo.critic_warmup_steps more",
        "ppo.cliprange_value larger, if value/clipped is high",
    ),
)
def critic_dead(history: History) -> Evidence | None:
    """Over the second half of the run, where there is something to explain; or no gradient at all."""
    returns = history.series("returns/std")
    vary = returns.where(lambda spread: spread > VANISHED * returns.median).steps
    late = history.series("value/explained_variance").last(1 / 2)
    late = late.at(vary) if len(returns) else late
    if len(late) < 3:
        return None
    norm = history.series("value/grad_norm")
    no_gradient = len(norm) > 0 and norm.last(1 / 2).median < NO_GRADIENT
    if late.median > LEARNED and not no_gradient:
        return None
    words = f"value/explained_variance is {late.median:.2g} (median over {{span}})"
    figures = {"value__explained_variance": late.median}
    if len(norm):
        words += f", value/grad_norm {norm.last(1 / 2).median:.2g}"
        figures["value__grad_norm"] = norm.last(1 / 2).median
    return seen(words, late, **figures)
