"""Which prompts to keep by their tags, complex ones first and every tag often.

The "complexity-first diverse sampling" of InsTag (Lu et al. 2023, 2308.07074, algorithm 1), which the Qwen report
(3.2.1) names for the prompts of its comparisons. Departure: records of equal complexity come in an order drawn from the
seed, not in the file's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_formats.records import Comparison, Scored
from data_formats.splitting import prompt_key


def tag_balanced(tags: Sequence[Sequence[str]], count: int, seed: int) -> list[int]:
    """Indices of `count` records in the order they were taken, or all that have a tag where these are fewer.

    Records are sorted by their number of different tags, most first. A round goes through those left and takes each
    that brings a tag new to the round; rounds follow until `count` are taken. Records without tags are never taken.
    """
    owned = [frozenset(own) for own in tags]
    left = [index for index, own in enumerate(owned) if own]
    random.Random(seed).shuffle(left)
    left.sort(key=lambda index: -len(owned[index]))
    taken: list[int] = []
    while left and len(taken) < count:
        seen: set[str] = set()
        passed = []
        for index in left:
            if len(taken) < count and not owned[index] <= seen:
                seen |= owned[index]
                taken.append(index)
            else:
                passed.append(index)
        left = passed
    return taken


def filled_balanced(tags: Sequence[Sequence[str]], count: int, seed: int) -> list[int]:
    """As `tag_balanced`; where these are fewer than `count`, those without tags follow in an order of the seed."""
    taken = tag_balanced(tags, count, seed)
    without = [index for index, own in enumerate(tags) if not own]
    random.Random(seed).shuffle(without)
    return (taken + without)[:count]


def balanced_prompts(records: Sequence[Comparison | Scored], count: int, seed: int) -> list[Comparison | Scored]:
    """All records of `count` prompts, chosen by `tag_balanced`, in the order they were taken; a prompt's tags are those
    of all of its records."""
    own: dict[str, list[Comparison | Scored]] = {}
    for record in records:
        own.setdefault(prompt_key(record), []).append(record)
    prompts = list(own.values())
    taken = tag_balanced([[tag for record in group for tag in record.tags] for group in prompts], count, seed)
    return [record for index in taken for record in prompts[index]]
