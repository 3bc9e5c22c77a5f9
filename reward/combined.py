"""Several rewards as one: the weighted sum of its parts, each of which stays visible.

A part's score may be put on a scale of its own first: `clamp((score - shift) / scale, -clip, clip)`. The three numbers
are fixed, so a part means the same on every rank and after every restart; what moves with training is the
normalisation of the sum (`reward.running`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reward.protocol import Reward, Sample, Verdict, judge, require_reward, same_tokens, text_alone
from reward.scoring import checked


@dataclass(frozen=True, slots=True)
class Part:
    """A reward and what it counts for.

    Attributes:
        reward: scores replies; its `name` is what the part is logged under.
        weight: factor of its score in the sum; any finite number, negative for a penalty.
        shift, scale: the score becomes `(score - shift) / scale`; both in the reward's unit, `scale` above 0.
        clip: bound on what comes out of that, on both sides; None for no bound.

    Raises:
        ValueError: a number out of its range.
        TypeError: no reward.
    """

    reward: Reward
    weight: float = 1.0
    shift: float = 0.0
    scale: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        require_reward(self.reward, "Part: reward")
        numbers = [self.weight, self.shift, self.scale, 1.0 if self.clip is None else self.clip]
        if not all(map(math.isfinite, numbers)) or self.scale <= 0 or numbers[3] <= 0:
            raise ValueError(
                f"part {self.reward.name!r}: weight and shift must be finite, scale and clip above 0, found {numbers}"
            )

    def of(self, score: float) -> float:
        """What a score of this part adds to the sum."""
        value = (score - self.shift) / self.scale
        return self.weight * (value if self.clip is None else max(-self.clip, min(self.clip, value)))


class Composed:
    """What rewards made of others have in common: names that are told apart, and token ids only for those they suit.

    `tokenizer` is that of the first inner reward that reads token ids: whoever shares it may hand ids over, and inner
    rewards with another one are given the text alone.

    Args:
        rewards: the inner ones, in order.
        name: for logs and errors.

    Raises:
        ValueError: no reward, or two of one name.
    """

    def __init__(self, rewards: Sequence[Reward], name: str):
        self.rewards, self.name = tuple(rewards), name
        for at, reward in enumerate(self.rewards):
            require_reward(reward, f"reward {name!r}, number {at + 1}")
        names = [reward.name for reward in self.rewards]
        twice = sorted({each for each in names if names.count(each) > 1})
        if twice or not names:
            raise ValueError(
                f"reward {name!r} has two parts named {twice[0]!r}: give each a name of its own"
                if twice
                else f"reward {name!r} has no part"
            )
        readers = [reward for reward in self.rewards if getattr(reward, "reads_ids", True)]
        owned = (getattr(reward, "tokenizer", None) for reward in readers)
        self.tokenizer: Any = next((tokenizer for tokenizer in owned if tokenizer is not None), None)

    def inner(self, samples: Sequence[Sample]) -> dict[str, Verdict]:
        """By name, what each inner reward says."""
        verdicts = {}
        for reward in self.rewards:
            shared = self.tokenizer is None or same_tokens(reward, self.tokenizer)
            verdict = judge(reward, samples if shared else text_alone(samples))
            checked(verdict.scores, len(samples), reward.name)
            verdicts[reward.name] = verdict
        return verdicts

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample."""
        return self.verdict(samples).scores

    def verdict(self, samples: Sequence[Sample]) -> Verdict:
        """The scores and those of the parts."""
        raise NotImplementedError


class CombinedReward(Composed):
    """The weighted sum of several rewards.

    Args:
        parts: at least one; their rewards' names differ.
        name: for logs and errors.

    Raises:
        ValueError: no part, or two of one name.
    """

    def __init__(self, parts: Sequence[Part], name: str = "reward"):
        self.parts = tuple(parts)
        for at, part in enumerate(self.parts):
            if not isinstance(part, Part):
                raise TypeError(
                    f"CombinedReward: parts[{at}] must be a Part(reward, weight), not a {type(part).__name__}"
                )
        super().__init__([part.reward for part in self.parts], name)

    def verdict(self, samples: Sequence[Sample]) -> Verdict:
        """The sums; of the parts, what each reward gave before shift, scale, clip and weight (`PART`, and `PART/INNER`
        where a part is composed itself).

        Raises:
            RewardError: a part failed.
        """
        verdicts = self.inner(samples)
        rows = zip(*(verdict.scores for verdict in verdicts.values()), strict=True)
        total = [sum(part.of(score) for part, score in zip(self.parts, row, strict=True)) for row in rows]
        return Verdict(checked(total, len(samples), self.name), flattened(verdicts))


def flattened(verdicts: dict[str, Verdict]) -> dict[str, list[float]]:
    """Scores by name, those of parts of parts as `OUTER/INNER`."""
    found: dict[str, list[float]] = {}
    for name, verdict in verdicts.items():
        found[name] = verdict.scores
        found |= {f"{name}/{inner}": scores for inner, scores in verdict.parts.items()}
    return found


def leaves(reward: Reward) -> Iterator[Reward]:
    """The plain rewards that `reward` is made of, in order; itself when it is plain."""
    if isinstance(reward, Composed):
        for inner in reward.rewards:
            yield from leaves(inner)
    else:
        yield reward
