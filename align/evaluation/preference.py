"""A reward model's scores on held-out comparisons -> every figure of its evaluation. Plain numbers, no model.

`evaluate` is what the stages pmp and rm and `align evaluate-reward` share. Which of "longer wins" and "shorter wins" is
the rule of length that stands beside every accuracy, training pairs say; where there are none, it is the better of the
two on the very pairs that are judged, an upper bound for such a rule, and `length_rule` says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from align.evaluation.accuracy import JudgedPair, accuracy, most_wrong, parts, won_share
from align.evaluation.calibration import calibration_error, cross_fitted, fit_temperature, reliability
from data_formats.chatml import reply_text
from data_formats.records import Comparison
from data_formats.splitting import prompt_key

WORST = 32
TRAINING, THESE = "training pairs", "these pairs"


def longer_wins(comparisons: Sequence[Comparison]) -> bool:
    """Whether the longer reply is the chosen one at least as often as not."""
    share = won_share([_longer(pair) for pair in comparisons])
    return share is None or share >= 0.5


def majority_baseline(train: Sequence[Comparison], heldout: Sequence[Comparison]) -> float | None:
    """Held-out accuracy of always answering the side that won more often in training; None without held-out pairs.

    Records have no left and right, so the reply that comes first in the alphabet counts as the left one.
    """
    trained, found = (won_share([(a < b) - (a > b) for a, b in map(_texts, pairs)]) for pairs in (train, heldout))
    return found if found is None or trained is None or trained >= 0.5 else 1 - found


def score_summary(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (population), smallest, median and largest score of each side."""

    def of(scores: Sequence[float]) -> dict[str, float]:
        return {
            "mean": statistics.fmean(scores),
            "std": statistics.pstdev(scores),
            "min": min(scores),
            "median": statistics.median(scores),
            "max": max(scores),
        }

    return {"chosen": of(chosen), "rejected": of(rejected)}


def evaluate(
    comparisons: Sequence[Comparison],
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    train: Sequence[Comparison] | None = None,
) -> dict[str, Any]:
    """Every figure about scored pairs; empty without pairs.

    Args:
        chosen, rejected: scores of both sides, in the comparisons' order.
        train: the training pairs, which say whether "longer wins" or "shorter wins" is the rule of length.

    Returns:
        `accuracy` of all pairs (see there) and of `parts`; `accuracy_<tag>`; `margin`, its mean; `length_rule`: which
        one is used (`longer_wins`), `from` what it was learnt, and what `longer` and `shorter` get here; `scores`;
        `reliability` and `calibration_error` of the scores as they are; `temperature`, fitted on all pairs, for use;
        `reliability_at_temperature` and `calibration_error_at_temperature`, cross-fitted: each half of the prompts at
        the temperature fitted on the other (None where all pairs have one prompt).
    """
    if not comparisons:
        return {}
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    judged = [
        JudgedPair(margin, _longer(one), one.category, one.source, one.grade, one.tags, prompt_key(one))
        for one, margin in zip(comparisons, margins, strict=True)
    ]
    longer = longer_wins(comparisons if train is None else train)
    share = won_share([pair.longer for pair in judged])
    rule = {"longer_wins": longer, "from": THESE if train is None else TRAINING, "longer": share, "shorter": 1 - share}
    by = parts(judged, longer)
    stated = reliability(margins)
    scaled = cross_fitted(margins, [prompt_key(one) for one in comparisons])
    at_temperature = None if scaled is None else reliability(scaled)
    return {
        **{f"accuracy_{tag}": part["accuracy"] for tag, part in by["by_tag"].items()},
        **accuracy(judged, longer),  # after the tags, of which one may be called low
        "margin": sum(margins) / len(margins),
        **by,
        "length_rule": rule,
        "reliability": stated,
        "calibration_error": calibration_error(stated),
        "temperature": fit_temperature(margins),
        "reliability_at_temperature": at_temperature,
        "calibration_error_at_temperature": None if at_temperature is None else calibration_error(at_temperature),
        "scores": score_summary(chosen, rejected),
    }


def _texts(pair: Comparison) -> tuple[str, str]:
    """The chosen and the rejected reply, with what was thought before each."""
    return reply_text(pair.chosen_reply), reply_text(pair.rejected_reply)


def _longer(pair: Comparison) -> int:
    chosen, rejected = _texts(pair)
    return len(chosen) - len(rejected)


def line(pair: Comparison, chosen: float, rejected: float) -> dict[str, Any]:
    """A pair with its scores, as a line of `eval.jsonl`."""
    texts = _texts(pair)
    return {
        "category": pair.category,
        "tags": list(pair.tags),
        "source": pair.source,
        "grade": pair.grade,
        "chosen_score": chosen,
        "rejected_score": rejected,
        "prompt": [{"role": message.role, "content": message.content} for message in pair.prompt],
        "chosen": texts[0],
        "rejected": texts[1],
        **{
            name: [{"role": message.role, "content": message.content} for message in turns]
            for name, turns in (("chosen_turns", pair.chosen_turns), ("rejected_turns", pair.rejected_turns))
            if turns
        },
    }


def lines(
    comparisons: Sequence[Comparison], chosen: Sequence[float], rejected: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """What is kept of the pairs, by file name: `eval.jsonl` all of them, `most_wrong.jsonl` the WORST worst."""
    every = [line(*one) for one in zip(comparisons, chosen, rejected, strict=True)]
    worst = most_wrong([a - b for a, b in zip(chosen, rejected, strict=True)], WORST)
    return {"eval.jsonl": every, "most_wrong.jsonl": [every[index] for index in worst]}
