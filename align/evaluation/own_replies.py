"""Whether a reward model still tells a policy's own replies apart: two to a prompt, and a judge who is no part of it.

A reward model learnt from the replies of another policy, and its accuracy on held-out pairs is on such replies too.
What matters to the policy that trains on it is which of two replies of its own the reward prefers, and that degrades as
the policy moves (Llama 2, 3.2.1). Pure numbers; pairs without a better reply are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from align.evaluation.shares import clustered_wilson
from align.evaluation.table import percent

Part = dict[str, Any]


def accuracy_on_own(
    prompts: Sequence[Hashable], winners: Sequence[str | None], margins: Sequence[float]
) -> Part | None:
    """How often the reward prefers the reply that the judge does.

    Args:
        prompts: of each pair, what tells its prompt.
        winners: "first", "second", "tie" or None (no verdict), the judge's.
        margins: the reward's score of the first reply minus that of the second; NaN where it has none.

    Returns:
        `accuracy` with its 95 % interval `low` to `high` (pairs of one prompt hang together; equal scores are half
        right), the number of `pairs`, and of `undecided` ones, which have no better reply or no score. None without
        pairs.
    """
    worth, of = [], []
    for prompt, winner, margin in zip(prompts, winners, margins, strict=True):
        if winner in ("first", "second") and not math.isnan(margin):
            worth.append(0.5 if margin == 0 else float((margin > 0) == (winner == "first")))
            of.append(prompt)
    if not worth:
        return None
    low, high = clustered_wilson(worth, of)
    found = {"accuracy": sum(worth) / len(worth), "low": low, "high": high, "pairs": len(worth)}
    return found | {"undecided": len(winners) - len(worth)}


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Part:
    """`difference` of two accuracies with its 95 % interval `low` to `high`, of their two intervals (Newcombe 1998); as
    if their pairs had nothing to do with each other, which is on the safe side where prompts are the same."""
    below, above = (
        math.hypot(after["accuracy"] - after["low"], before["high"] - before["accuracy"]),
        math.hypot(after["high"] - after["accuracy"], before["accuracy"] - before["low"]),
    )
    difference = after["accuracy"] - before["accuracy"]
    return {"difference": difference, "low": difference - below, "high": difference + above}


def due(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """A sentence where the accuracy has surely fallen as the policy moved, else ""."""
    if not before or not after or change(before, after)["high"] >= 0:
        return ""
    was, now = percent(before["accuracy"]), percent(after["accuracy"])
    return (
        f"the reward prefers the better of two of the policy's own replies in {now} of the pairs, after {was} with the "
        "policy that it started from: a new round of comparisons is due"
    )
