"""Rules about whether the score that rises means what it should."""

from __future__ import annotations

import statistics

from align.doctor.history import History
from align.doctor.rule import Evidence, rule, seen
from align.doctor.series import Series, correlation

FALLEN = 0.25  # of the spread over replies
OVER = 0.1  # of the range gold or the win rate had in this run
LOST = 0.05  # of all replies
LONGER = 1.25
BY_LENGTH = 0.5  # correlation of score and length


@rule(
    "score-falls",
    "problem",
    "The score falls in training",
    needs=("score/mean", "score/std"),
    least=9,
    trained=True,
    causes=(
        "updates are too large",
        "the KL or the missing-end penalty outweighs the score",
        "advantages of a bad critic",
    ),
    changes=("ppo.policy.learning_rate lower", "ppo.kl_coef lower", "a longer ppo.critic_warmup_steps"),
)
def score_falls(history: History) -> Evidence | None:
    """Beyond noise, and by a quarter of how far replies differ."""
    score = history.series("score/mean")
    growth = score.growth()
    if not growth.down or growth.before - growth.after < FALLEN * history.series("score/std").first(1 / 3).median:
        return None
    words = f"score/mean {growth.before:.3g} -> {growth.after:.3g} (first and last third of {{span}})"
    return seen(words, score, score__mean=growth.after)


@rule(
    "over-optimisation",
    "problem",
    "The score goes on rising while the gold score or the win rate falls",
    needs=("eval/gold", "eval/win_rate"),
    either=True,
    least=3,
    causes=("the reward is a proxy: beyond some distance from the reference it is wrong",),
    changes=(
        "the checkpoint nearest the peak (ppo.save_steps), or a run that ends there (ppo.num_iterations)",
        "ppo.kl_coef higher",
        "a reward model trained on replies of this policy, or an ensemble",
    ),
)
def over_optimisation(history: History) -> Evidence | None:
    """Gold or, by a judge, the win rate against the start peaked before the end, and the score is higher now than then.
    Gold fell by a tenth of its range, the win rate, which chance moves more, by five of a hundred replies at least."""
    found = (_past_its_peak(history, name, least) for name, least in (("eval/gold", 0.0), ("eval/win_rate", LOST)))
    return next((one for one in found if one is not None), None)


def _past_its_peak(history: History, name: str, least: float) -> Evidence | None:
    judged = history.series(name)
    if len(judged) < 3:
        return None
    score = dict(zip(*history.stage.series("eval/score"), strict=True))
    peak = max(range(len(judged)), key=lambda at: judged.values[at])
    top, now = judged.values[peak], judged.values[-1]
    then, end = score.get(judged.steps[peak]), score.get(judged.steps[-1])
    if then is None or end is None or top - now <= max(OVER * (top - min(judged.values)), least) or end <= then:
        return None
    words = (
        f"{name} peaked at step {judged.steps[peak]} with {top:.3g} and is {now:.3g} at step {judged.steps[-1]}, "
        f"while eval/score went from {then:.3g} to {end:.3g}"
    )
    return seen(words, judged.part(peak), **{name.replace("/", "__"): now}, eval__score=end)


@rule(
    "length-hacking",
    "problem",
    "The score rises with the length of the replies",
    needs=("score/mean", "length/mean"),
    least=9,
    trained=True,
    causes=("the reward pays for length, or for what more text brings along",),
    changes=(
        "ppo.length_penalty above 0, or ppo.rollout.max_completion_length lower",
        "a reward model whose comparisons are balanced in length; look at its accuracy beside 'longer wins'",
    ),
)
def length_hacking(history: History) -> Evidence | None:
    """Both rise; and gold does not, or where there is no gold, the score goes with the length from reply to reply."""
    score, length = history.series("score/mean"), history.series("length/mean")
    longer, better = length.growth(), score.growth()
    if not (longer.up and better.up and longer.after > LONGER * longer.before):
        return None
    gold = history.series("eval/gold")
    how = _gold_flat(gold) if len(gold) >= 3 else _by_length(history, score, length)
    if not how:
        return None
    words = (
        f"length/mean {longer.before:.3g} -> {longer.after:.3g}, score/mean {better.before:.3g} -> {better.after:.3g}"
    )
    figures = {"length__mean": longer.after, "score__mean": better.after}
    return seen(f"{words} (first and last third of {{span}}); {how}", length, **figures)


def _gold_flat(gold: Series) -> str:
    risen = gold.values[-1] - gold.values[0]
    return "" if risen > 0 else f"eval/gold went from {gold.values[0]:.3g} to {gold.values[-1]:.3g}"


def _by_length(history: History, score: Series, length: Series) -> str:
    """Correlation within steps over sample replies; without those, of the changes from step to step."""
    scores, lengths = [], []
    samples = history.sampled("score", "reply_tokens") or history.sampled("score", "tokens")  # as older runs call it
    for rows in samples.values():
        middle = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        scores += [row[0] - middle[0] for row in rows]
        lengths += [row[1] - middle[1] for row in rows]
    found, where = correlation(tuple(scores), tuple(lengths)), "among the sample replies of a step"
    if found is None and score.steps == length.steps:
        found, where = correlation(score.differences(), length.differences()), "in their changes from step to step"
    return f"score and length correlate with {found:.2f} {where}" if found is not None and found > BY_LENGTH else ""
