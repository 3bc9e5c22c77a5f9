"""What was judged, as a file of comparisons, and the figures about it and whoever judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.feedback.annotators import about_annotators
from align.feedback.items import FeedbackItem
from align.feedback.judgments import GRADES, STRENGTHS, HumanJudgment, JudgmentBook, Undo
from align.feedback.merge import EDITED, MergeOptions, merge
from align.feedback.votes import matched
from data_formats import write_jsonl
from data_formats.errors import EmptyDatasetError


def write_pairs(
    items: Sequence[FeedbackItem],
    rows: Sequence[HumanJudgment | Undo],
    out: Path,
    options: MergeOptions | None = None,
    *,
    source: str | Path,
) -> dict[str, Any]:
    """Merge the judgments that count into comparisons, and write those.

    Args:
        rows: of files of judgments, of an annotator on an item the latest one last.
        source: where they come from, for errors.

    Returns:
        `items`, `judged_items`, `judgments`, `of_other_items`, `comparisons`, `by_strength`, `edited`, `left_out` by
        reason, and what `about_annotators` tells.

    Raises:
        JudgmentError: a judgment names a reply that its item does not have, or all are of other items.
        EmptyDatasetError: nobody judged anything, or no comparison is left; nothing is written.
        StorageError: `out` cannot be written.
    """
    judged, others = matched(items, JudgmentBook(rows).counting())
    if not judged:
        raise EmptyDatasetError("nobody has judged anything yet", path=source)
    merged = merge(judged, options)
    if not merged.comparisons:
        reasons = ", ".join(f"{number} {reason}" for reason, number in merged.left_out.most_common())
        raise EmptyDatasetError(f"no comparison is left of {len(judged)} judgments ({reasons})", path=source)
    figures = {
        "items": len(items),
        "judged_items": len({item.id for item, _ in judged}),
        "judgments": len(judged),
        "of_other_items": others,
        "comparisons": len(merged.comparisons),
        "by_strength": _by_strength([one.grade for one in merged.comparisons]),
        "edited": sum(EDITED in one.tags for one in merged.comparisons),
        "left_out": dict(merged.left_out.most_common()),
        **about_annotators(judged),
    }
    write_jsonl(out, merged.comparisons)
    return figures


def _by_strength(grades: Sequence[float | None]) -> dict[str, int]:
    counts = Counter(grades)
    return {name: counts[GRADES[name]] for name in STRENGTHS[::-1]} | {"unsaid": counts[None]}
