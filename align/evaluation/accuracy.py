"""Accuracy on scored pairs, whole and by part, each with its 95 % interval and beside what length alone would get.

What length alone gets: always the longer reply, or always the shorter (`longer_wins` says which), equal lengths half.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from align.evaluation.shares import clustered_wilson

MAX_GRADES, GRADE_BINS = 10, 6
LENGTH_GAPS = (
    (-100, "shorter by over 100"),
    (-10, "shorter by 11 to 100"),
    (11, "within 10"),
    (101, "longer by 11 to 100"),
)
LONGEST_GAP = "longer by over 100"
Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair with its scores.

    Attributes:
        margin: score of the chosen reply minus that of the rejected one; the pair is right where it is above 0.
        longer: length of the chosen reply minus that of the rejected one, in characters; None: not known.
        grade: strength of the preference, None where there is none.
        prompt: what tells the prompt; "": one that no other pair has.
    """

    margin: float
    longer: int | None
    category: str = ""
    source: str = ""
    grade: float | None = None
    tags: tuple[str, ...] = ()
    prompt: str = ""


def accuracy(pairs: Sequence[JudgedPair], longer_wins: bool) -> Part:
    """`accuracy`, `correct`, `pairs`, the 95 % interval `accuracy_low`, `accuracy_high`, and `length_baseline`, what
    the rule about length gets on the pairs whose lengths are known (None: of none). Pairs of one prompt are not counted
    as independent in the interval (`clustered_wilson`)."""
    right = [pair.margin > 0 for pair in pairs]
    n, correct = len(pairs), sum(right)
    low, high = clustered_wilson(right, [pair.prompt or at for at, pair in enumerate(pairs)])
    longer = won_share([pair.longer for pair in pairs if pair.longer is not None])
    return {
        "accuracy": correct / n if n else float("nan"),
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": correct,
        "pairs": n,
        "length_baseline": longer if longer is None or longer_wins else 1 - longer,
    }


def won_share(values: Sequence[int]) -> float | None:
    """Share of values above 0, those equal to 0 half; None without values."""
    return sum(0.5 * (value == 0) + (value > 0) for value in values) / len(values) if values else None


def parts(pairs: Sequence[JudgedPair], longer_wins: bool) -> dict[str, dict[str, Part]]:
    """`by_source`, `by_grade`, `by_category`, `by_tag`, `by_length_gap`: name -> `accuracy` of the pairs that carry it.

    Grades of more than MAX_GRADES values are put into at most GRADE_BINS bins of about as many pairs each, named by
    the least and the largest grade in them. Grades and length gaps stand in their own order, names in the alphabet's.
    """

    def by(names: Sequence[Iterable[str]], order: Sequence[str] | None = None) -> dict[str, Part]:
        groups: dict[str, list[JudgedPair]] = defaultdict(list)
        for pair, own in zip(pairs, names, strict=True):
            for name in dict.fromkeys(own):
                groups[name].append(pair)
        ordered = sorted(groups) if order is None else [name for name in order if name in groups]
        return {name: accuracy(groups[name], longer_wins) for name in ordered}

    named = grade_names([pair.grade for pair in pairs if pair.grade is not None])
    gaps = [name for _, name in LENGTH_GAPS] + [LONGEST_GAP]
    return {
        "by_source": by([[pair.source] if pair.source else [] for pair in pairs]),
        "by_grade": by([[named[pair.grade]] if pair.grade in named else [] for pair in pairs], [*named.values()]),
        "by_category": by([[pair.category] if pair.category else [] for pair in pairs]),
        "by_tag": by([pair.tags for pair in pairs]),
        "by_length_gap": by([[] if pair.longer is None else [_gap(pair.longer)] for pair in pairs], gaps),
    }


def _gap(gap: int) -> str:
    return next((name for end, name in LENGTH_GAPS if gap < end), LONGEST_GAP)


def grade_names(grades: Sequence[float]) -> dict[float, str]:
    """Every finite grade -> its own name, or, of more than MAX_GRADES values, that of its bin ("0.2 to 0.45"), in the
    grades' order. A bin is a grade's middle rank among all of them in parts of 1 / GRADE_BINS: equal grades are never
    parted, and bins that nothing falls into are left out."""
    counts = Counter(grade for grade in grades if math.isfinite(grade))
    values = sorted(counts)
    bins: dict[int, list[float]] = defaultdict(list)
    below = 0
    for at, value in enumerate(values):
        middle = (below + counts[value] / 2) / counts.total()
        bins[at if len(values) <= MAX_GRADES else int(GRADE_BINS * middle)].append(value)
        below += counts[value]
    ends = [tuple(dict.fromkeys((own[0], own[-1]))) for own in bins.values()]
    for digits in range(3, 18):  # as few as tell all of them apart
        written = [[f"{end:.{digits}g}" for end in own] for own in ends]
        if len({end for own in written for end in own}) == sum(map(len, written)):
            break
    return {value: " to ".join(name) for name, own in zip(written, bins.values(), strict=True) for value in own}


def most_wrong(differences: Sequence[float], count: int) -> list[int]:
    """Indices of the pairs with the most negative differences, the worst first; none that are right."""
    wrong = [index for index, difference in enumerate(differences) if difference < 0]
    return sorted(wrong, key=lambda index: (differences[index], index))[:count]
