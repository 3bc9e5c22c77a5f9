"""Who judged, and how: agreement, and of each annotator what the choices lean to beside the better reply.

Position: among judgments with one best reply, how often that is the one shown first, beside how often it would be if
the order did not matter. Length: among choices between two replies of different lengths, how often the longer one is
preferred, and, at any place, how much a much longer reply gains in log-odds (`align.evaluation.length_control`). Good
replies may be longer: a share is a bias as far as it is another than that of those who judged the same. How often an
annotator is wrong: `align.feedback.error_rates`. Agreement is Krippendorff's alpha of the verdicts on pairs of replies.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from align.evaluation.length_control import at_equal_length
from align.evaluation.ranking import agreement
from align.evaluation.shares import clustered_wilson, wilson
from align.feedback.error_rates import error_rates
from align.feedback.votes import Judged, Vote, votes_of

Part = dict[str, Any]


def about_annotators(judged: Sequence[Judged], *, seed: int = 0) -> Part:
    """The figures of everybody who judged.

    Args:
        judged: each judgment that counts with its item.
        seed: of the intervals.

    Returns:
        `agreement` (`align.evaluation.ranking.agreement`, each annotator a judge), and `annotators`, by name:
        `judgments`; `seconds`, their median; `tied` and `all_bad`, how many judgments name no single best reply, and
        call all bad; `unsafe` and `edited`, how many flag a reply, and rewrite one; `first_shown`, the share of best
        replies that were shown first, its interval, the share `expected`, and `number`; `longer`, the share of choices
        for the longer reply, its interval over items, `number`, and `weight`; `error`
        (`align.feedback.error_rates.ErrorRate`). Shares, weight and error are None where nothing tells them.
    """
    by_annotator: dict[str, list[Judged]] = defaultdict(list)
    for item, judgment in judged:
        by_annotator[judgment.annotator].append((item, judgment))
    votes = {who: [vote for one in own for vote in votes_of(*one)] for who, own in by_annotator.items()}
    verdicts = {
        (who, ""): {vote.pair: vote.winner for vote in own if vote.winner is not None} for who, own in votes.items()
    }
    errors = error_rates(choices_of(votes), seed=seed)
    annotators = {
        who: _counts(own)
        | {"first_shown": _first_shown(own), "longer": _longer(votes[who])}
        | {"error": asdict(errors[who]) if who in errors else None}
        for who, own in by_annotator.items()
    }
    return {"agreement": agreement(verdicts, seed=seed), "annotators": annotators}


def choices_of(votes: Mapping[str, Sequence[Vote]]) -> dict[str, dict[tuple[str, str, str], tuple[bool, bool]]]:
    """By annotator and pair, as `error_rates` reads them: those votes that are for one of the two replies."""
    return {
        who: {vote.pair: (vote.first_was_earlier, vote.winner == "first") for vote in own if _is_choice(vote)}
        for who, own in votes.items()
    }


def _is_choice(vote: Vote) -> bool:
    return vote.winner in ("first", "second")


def _counts(judged: Sequence[Judged]) -> Part:
    judgments = [judgment for _, judgment in judged]
    return {
        "judgments": len(judgments),
        "seconds": statistics.median(one.seconds for one in judgments),
        "tied": sum(bool(one.ranking) and len(one.ranking[0]) > 1 for one in judgments),
        "all_bad": sum(one.all_bad for one in judgments),
        "unsafe": sum(bool(one.unsafe) for one in judgments),
        "edited": sum(one.edited is not None for one in judgments),
    }


def _first_shown(judged: Sequence[Judged]) -> Part:
    best = [(one.ranking[0][0], one.shown) for _, one in judged if one.ranking and len(one.ranking[0]) == 1]
    right = sum(name == shown[0] for name, shown in best)
    expected = statistics.fmean(1 / len(shown) for _, shown in best) if best else None
    return _share(right, len(best), wilson(right, len(best))) | {"expected": expected}


def _longer(votes: Sequence[Vote]) -> Part:
    chosen = [(vote, len(vote.first.reply) - len(vote.second.reply)) for vote in votes if _is_choice(vote)]
    unequal = [(vote, gap) for vote, gap in chosen if gap]
    right = [(gap > 0) == (vote.winner == "first") for vote, gap in unequal]
    interval = clustered_wilson(right, [vote.judgment.item for vote, _ in unequal]) if right else (0.0, 1.0)
    return _share(sum(right), len(right), interval) | {"weight": _length_weight(chosen)}


def _length_weight(chosen: Sequence[tuple[Vote, int]]) -> float | None:
    """What length tells of the choices beside the place, which is the regression's constant."""
    worth = [float((vote.winner == "second") == vote.first_was_earlier) for vote, _ in chosen]  # of the one shown later
    longer = [-gap if vote.first_was_earlier else gap for vote, gap in chosen]
    fitted = at_equal_length(worth, [vote.judgment.item for vote, _ in chosen], longer)
    return None if fitted is None else fitted["length_weight"]


def _share(right: float, number: int, interval: tuple[float, float]) -> Part:
    low, high = interval if number else (None, None)
    return {"share": right / number if number else None, "low": low, "high": high, "number": number}
