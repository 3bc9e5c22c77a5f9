"""Which of the candidates are trained on, and what is known of them: rejection sampling's choice, without any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from align.evaluation.best_of import best_of
from data_formats.errors import EmptyDatasetError
from data_formats.records import Demonstration, Message, Prompt
from data_formats.writing import as_row

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Best:
    """A prompt's best reply so far: its text, its score, and the round that it was sampled in, from 1; 0: an earlier
    stage."""

    text: str
    score: float
    round: int


def best_reply(row: Row, number: int) -> Best | None:
    """The reply of the highest score among those of round `number` that have one, ended by themselves and say
    something; of equal ones the first. None where there is no such reply."""
    judged = [one for one in row["replies"] if one["score"] is not None]
    able = [one for one in judged if one["stop"] == "end" and one["content"].strip()]
    best = max(able, key=lambda one: one["score"], default=None)  # max gives the first of equal ones
    return None if best is None else Best(best["content"], best["score"], number)


def better(earlier: Best | None, now: Best | None) -> Best | None:
    """The one of the higher score, of equal ones the earlier."""
    if earlier is None or now is None:
        return earlier or now
    return now if now.score > earlier.score else earlier


def choose(earlier: Sequence[Best | None], rows: Sequence[Row], number: int, keep_earlier: bool) -> list[Best | None]:
    """Each prompt's best reply after round `number`.

    Args:
        earlier: the same after the round before.
        rows: the samples of round `number`, a row a prompt.
    """
    now = [best_reply(row, number) for row in rows]
    return [better(old, new) for old, new in zip(earlier, now, strict=True)] if keep_earlier else now


def above(best: Sequence[Best | None], threshold: float | None) -> list[Best | None]:
    """None in the place of those below the threshold."""
    return [one if one is not None and (threshold is None or one.score >= threshold) else None for one in best]


def require_some(kept: Sequence[Best | None], best: Sequence[Best | None], section: Any, stage: str) -> None:
    """Raises EmptyDatasetError when nothing is left to train on; names the key and the best score seen."""
    if any(kept):
        return
    top = max((one.score for one in best if one is not None), default=None)
    if top is None:
        raise EmptyDatasetError(
            f"none of the sampled replies ended by itself and said something, so none is kept: raise "
            f"{stage}.rollout.max_completion_length ({section.rollout.max_completion_length}), or start from a model "
            "that has been finetuned"
        )
    raise EmptyDatasetError(
        f"{stage}.threshold: no reply is kept, the best score of all is {top:.4g}, below the threshold "
        f"{section.threshold:g}; lower {stage}.threshold or remove it"
    )


def demonstrations(prompts: Sequence[Prompt], kept: Sequence[Best | None]) -> list[Row]:
    """Rows of `demonstrations.jsonl`, one a kept prompt: our rows of conversations, with `score` and `round`."""
    rows = []
    for prompt, one in zip(prompts, kept, strict=True):
        if one is not None:
            turns = (*prompt.messages, Message("assistant", one.text))
            demo = Demonstration(turns, prompt.category, prompt.source, prompt.tools, prompt.tags)
            rows.append(as_row(demo) | {"score": one.score, "round": one.round})
    return rows


def figures(rows: Sequence[Row], best: Sequence[Best | None], kept: Sequence[Best | None], number: int) -> Row:
    """What a round found: counts, mean scores, and the best of k by k (over all replies, cut ones too).

    Where the reward failed on some replies (`replies_failed`), k goes to the fewest that a prompt has scores of, and a
    prompt without any is in no mean.
    """
    scores = [[one["score"] for one in row["replies"] if one["score"] is not None] for row in rows]
    failed = sum(len(row["replies"]) for row in rows) - sum(map(len, scores))
    fewest = min(len(row) for row in scores if row)
    scores = [row[:fewest] for row in scores if row]
    stops = Counter(one["stop"] for row in rows for one in row["replies"])
    by_k, chosen = best_of(scores), [one for one in kept if one is not None]
    return {
        "prompts": len(rows),
        "replies": sum(stops.values()),
        "replies_cut": stops["length"],
        "replies_without_end": stops["other"],
        **({"replies_failed": failed} if failed else {}),
        "no_reply_ended": sum(one is None for one in best),
        "below_threshold": sum(one is not None for one in best) - len(chosen),
        "kept": len(chosen),
        "kept_share": len(chosen) / len(rows),
        "kept_from_earlier": sum(one.round < number for one in chosen),
        "score_single": by_k[0]["best"],
        "score_best": by_k[-1]["best"],
        "score_kept": fmean(one.score for one in chosen),
        "by_k": by_k,
    }
