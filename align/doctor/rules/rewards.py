"""Rules about what the reward says, and what is left of it after normalising and clipping."""

from __future__ import annotations

from align.doctor.history import History
from align.doctor.rule import Evidence, rule, seen

EQUAL = 1e-6  # beside the size of the score: rounding
AT_THE_CLIP = 0.2  # of the replies
NEAR_THE_CLIP = 0.9
SQUASHED = 0.1


@rule(
    "equal-rewards",
    "problem",
    "The reward is the same for all replies",
    needs=("score/std", "score/mean"),
    least=1,
    causes=("the reward does not depend on the reply", "a gate refuses, or a judge passes, every reply"),
    changes=("look at ppo.reward and at the scores in samples.jsonl", "prompts that are neither too easy nor too hard"),
)
def equal_rewards(history: History) -> Evidence | None:
    """In half of the iterations or more: nothing can be learned from those."""
    deviation, size = history.series("score/std"), history.series("score/mean").where(lambda score: True)
    scale = max(1.0, *map(abs, size.values))
    equal = deviation.where(lambda spread: spread <= EQUAL * scale)
    if len(equal) < 0.5 * len(deviation):
        return None
    words = (
        f"score/std is 0 in {len(equal)} of {len(deviation)} iterations ({{span}}), score/mean {size.values[-1]:.3g}"
    )
    return seen(words, equal, score__std=equal.mean, score__mean=size.values[-1])


@rule(
    "reward-clipped",
    "problem",
    "The clip of the reward takes most of what it says",
    needs=("reward/mean", "reward/std", "score/std"),
    least=1,
    settings=("reward_clip_range",),
    causes=("the scores are large beside reward_clip_range", "their mean is far from 0 and not subtracted"),
    changes=("ppo.normalize_reward: running_mean_std", "ppo.reward_clip_range larger, or null"),
)
def reward_clipped(history: History) -> Evidence | None:
    """Sample replies at the clip where there are some; else a mean at the clip, or a deviation that it squashed."""
    limit = history.amount("reward_clip_range") or 0.0
    samples = history.sampled("reward")
    mean, deviation, score = (history.series(key).last(1 / 2) for key in ("reward/mean", "reward/std", "score/std"))
    if samples:
        rewards = [abs(reward) for rows in samples.values() for (reward,) in rows]
        share = sum(reward >= limit * (1 - 1e-6) for reward in rewards) / len(rewards)
        if share < AT_THE_CLIP:
            return None
        words = f"{share:.0%} of {len(rewards)} sample replies have a reward of ±{limit:g}, the clip"
        return seen(words, history.series("reward/mean"), reward__mean=mean.mean, reward__std=deviation.mean)
    scaled = "std" in str(history.setting("normalize_reward"))
    squashed = not scaled and score.median > 0 and deviation.median < SQUASHED * score.median
    if abs(mean.mean) < NEAR_THE_CLIP * limit and not squashed:
        return None
    words = f"reward/mean is {mean.mean:.3g}, reward/std {deviation.mean:.2g} over {{span}}; the clip is ±{limit:g}"
    return seen(words, mean, reward__mean=mean.mean, reward__std=deviation.mean)
