"""Who won out, and how surely: wins, ties and losses of one model against another, in all and by category.

Every judgment counts alone, as in figure 4 of the Qwen report: three annotators of a prompt are three judgments, with
no majority vote, and averages are over judgments, not over categories. Judgments on one prompt are not independent, so
the interval of the win share (wins and half of the ties, over judgments) is that of as many independent ones as they
are worth (`align.evaluation.shares.clustered_wilson`).

The length-controlled share asks how the second model would do if its replies were as long as the first one's
(`align.evaluation.length_control`). Without torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from align.evaluation.length_control import at_equal_length
from align.evaluation.shares import clustered_wilson

WORTH = {"first": 0.0, "tie": 0.5, "second": 1.0}  # of a verdict, to the second


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """A reply of each of two models to the same prompt, and all that was said of the two.

    Attributes:
        prompt: which one; the judgments of all pairs with the same hang together.
        winners: one a judgment, "first", "second" or "tie", None where there is no verdict; empty where the judge has
            nothing on the pair. `reward.judges.protocol.Judgment.winner`.
        category: of the prompt, empty for none.
        longer: length of the second reply minus that of the first, in characters; None: not known.
    """

    prompt: Hashable
    winners: Sequence[str | None]
    category: str = ""
    longer: int | None = None


def win_rates(pairs: Sequence[ComparedPair], *, judged_by: str, first: str, second: str) -> dict[str, Any]:
    """What `second` (the later of two models, the one that is asked about) won, tied and lost against `first`.

    Args:
        pairs: of any number of prompts; several a prompt where replies are sampled.
        judged_by: the words that follow "judged by", of `reward.judges.protocol.Judge.described`.
        first, second: the models' names.

    Returns:
        `judged_by`, `first`, `second`, and of all pairs: `prompts` and `pairs` with a verdict, `judgments` (verdicts),
        `no_verdict` (judgments that came to none) and `unjudged` (pairs on which the judge has nothing), none of which
        counts in a share; `win`, `tie`, `loss` of `second` in judgments; `win_share` with its 95 % interval `low` to
        `high`, all None without a verdict; `length_controlled`, which `at_equal_length` gives. `by_category` has these
        counts and shares for each category that has a name.
    """
    categories = sorted({pair.category for pair in pairs} - {""})
    by_category = {name: _figures([pair for pair in pairs if pair.category == name]) for name in categories}
    who = {"judged_by": judged_by, "first": first, "second": second}
    return {**who, **_figures(pairs), "by_category": by_category}


def _figures(pairs: Sequence[ComparedPair]) -> dict[str, Any]:
    said = [(pair, winner) for pair in pairs for winner in pair.winners if winner is not None]
    worth, prompts = [WORTH[winner] for _, winner in said], [pair.prompt for pair, _ in said]
    low, high = clustered_wilson(worth, prompts) if worth else (None, None)
    return {
        "prompts": len(set(prompts)),
        "pairs": sum(any(winner is not None for winner in pair.winners) for pair in pairs),
        "judgments": len(said),
        "no_verdict": sum(len(pair.winners) for pair in pairs) - len(said),
        "unjudged": sum(not pair.winners for pair in pairs),
        "win": worth.count(1.0),
        "tie": worth.count(0.5),
        "loss": worth.count(0.0),
        "win_share": sum(worth) / len(worth) if worth else None,
        "low": low,
        "high": high,
        "length_controlled": at_equal_length(worth, prompts, [pair.longer for pair, _ in said]),
    }
