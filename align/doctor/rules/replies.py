"""Rules about the replies themselves: whether they end, how long they are, how many differ."""

from __future__ import annotations

from align.doctor.history import History
from align.doctor.rule import Evidence, rule, seen
from align.doctor.series import Series

ENDED = 0.7
FEWER_END = 0.2
SHORTER = 0.5  # times the length at the start
DISTINCT, FEWER_DISTINCT = 0.5, 0.6
REPEATS, FEWER_GRAMS = 0.5, 0.75


@rule(
    "replies-cut",
    "problem",
    "Many replies are cut before they end",
    needs=("end_rate",),
    causes=(
        "max_completion_length is short for these prompts",
        "the policy has not learned, or has unlearned, to end a reply",
        "the reward pays for length",
    ),
    changes=(
        "ppo.rollout.max_completion_length higher",
        "ppo.missing_eos_penalty higher, or ppo.length_penalty above 0",
        "a longer sft stage",
    ),
)
def replies_cut(history: History) -> Evidence | None:
    """At the end of the run, or more and more of them."""
    ended = history.series("end_rate")
    late, growth = ended.last(1 / 3), ended.growth()
    fallen = growth.down and growth.before - growth.after > FEWER_END
    if late.mean >= ENDED and not fallen:
        return None
    first = f", {growth.before:.2g} in the first third" if fallen else ""
    return seen(f"end_rate is {late.mean:.2g} on average over {{span}}{first}", late, end_rate=late.mean)


@rule(
    "replies-shrink",
    "note",
    "The replies become much shorter",
    needs=("length/mean",),
    least=9,
    trained=True,
    causes=("a penalty on length or on a missing end that outweighs the score", "the reward prefers short replies"),
    changes=("ppo.length_penalty lower, ppo.length_penalty_free higher", "ppo.rollout.min_completion_length"),
)
def replies_shrink(history: History) -> Evidence | None:
    """To less than half."""
    length = history.series("length/mean")
    growth = length.growth()
    if not growth.down or growth.after >= SHORTER * growth.before:
        return None
    words = f"length/mean {growth.before:.3g} -> {growth.after:.3g} tokens (first and last third of {{span}})"
    return seen(words, length, length__mean=growth.after)


@rule(
    "duplicate-replies",
    "problem",
    "The replies become the same",
    needs=("distinct", "distinct_1", "distinct_2"),
    either=True,
    causes=("the policy has found one reply that the reward pays for", "temperature or top_p is low", "few prompts"),
    changes=("ppo.kl_coef higher", "ppo.entropy_coef above 0", "ppo.rollout.temperature 1, top_p nearer to 1"),
)
def duplicate_replies(history: History) -> Evidence | None:
    """Few different replies at the end and fewer than at first; or fewer different pairs of tokens, or tokens."""
    distinct = history.series("distinct")
    if len(distinct) >= 5:
        first, late = distinct.first(1 / 5), distinct.last(1 / 5)
        if late.mean < DISTINCT and late.mean < FEWER_DISTINCT * first.mean:
            return _fewer("distinct", first, late)
    length = history.series("length/mean")
    for key in ("distinct_2", "distinct_1"):
        series = history.series(key)
        if len(series) < 5 or series.steps != length.steps:
            continue
        first, late = series.first(1 / 5), series.last(1 / 5)
        # the share falls as replies grow, too: so must the number
        fewer = late.mean * length.last(1 / 5).mean < FEWER_GRAMS * first.mean * length.first(1 / 5).mean
        if fewer and late.mean < REPEATS * first.mean:
            return _fewer(key, first, late)
    return None


def _fewer(key: str, first: Series, late: Series) -> Evidence:
    words = f"{key} {first.mean:.2g} -> {late.mean:.2g} ({first.span}, then {{span}})"
    return seen(words, late, **{key: late.mean})
