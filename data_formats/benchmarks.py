"""Formats of reward benchmarks: RewardBench 1 and 2, RM-Bench, PPE's correctness sets (best of K).

Of several replies a prompt the right ones score 1 and the wrong ones 0 (`Scored`), which gives every right-over-wrong
pair as comparisons. RM-Bench's pairs are tagged by how hard style makes them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from data_formats.comparisons import comparison_of, is_best_of, is_list_of_texts, parse_preference
from data_formats.context import asked
from data_formats.errors import DataError
from data_formats.formats import TIED_PAIRS, Dropped, Format, Notes, as_text, label, optional_number, shown
from data_formats.records import Comparison, Message, Reply, Scored
from data_formats.scored import compared, scored_of

STYLES = 3  # RM-Bench: concise, detailed, detailed with markdown
_SIDES = ("chosen", "rejected")
_NUMBERED = re.compile(r"response_(\d+)")


def _category(row: dict[str, Any], notes: Notes) -> str:
    return label(row, "category", notes) or label(row, "subset", notes) or label(row, "domain", notes)


def _texts(row: dict[str, Any], field: str, notes: Notes) -> list[str]:
    value = row[field]
    return [as_text(text, field, notes) for text in (value if isinstance(value, list) else [value])]


def parse_rewardbench(row: dict[str, Any], notes: Notes) -> Comparison:
    """`prompt`, `chosen`, `rejected` and `subset`, the category (RewardBench, Lambert et al. 2024)."""
    made = parse_preference(row, notes)
    return replace(made, category=_category(row, notes))


def parse_best_of(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt`, `chosen` and `rejected` with several replies a side (RewardBench 2): scores 1 and 0.

    Its Ties have several right replies; best-of-4 has one.
    """
    replies = [
        Reply(text, score)
        for field, score in zip(_SIDES, (1.0, 0.0), strict=True)
        for text in _texts(row, field, notes)
    ]
    for field in ("num_correct", "num_incorrect", "num_rejected", "total_completions"):
        row.get(field)
    return replace(scored_of(row, asked(row, "prompt", notes), replies, notes), category=_category(row, notes))


def _is_rm_bench(row: dict[str, Any]) -> bool:
    return "domain" in row and all(is_list_of_texts(row[field]) and len(row[field]) == STYLES for field in _SIDES)


def parse_rm_bench(row: dict[str, Any], notes: Notes) -> tuple[Comparison, ...]:
    """`prompt`, `chosen` and `rejected` in three styles each, `domain` (RM-Bench, Liu et al. 2024): nine pairs.

    Tags: `hard` where the wrong reply is in a richer style than the right one, `normal` in the same, `easy` in a
    plainer one.
    """
    prompt, category = asked(row, "prompt", notes), _category(row, notes)
    chosen, rejected = (_texts(row, field, notes) for field in _SIDES)
    made = []
    for richness, right in enumerate(chosen):
        for other, wrong in enumerate(rejected):
            try:
                pair = comparison_of(row, prompt, Message("assistant", right), Message("assistant", wrong), notes)
            except Dropped:
                notes[TIED_PAIRS] += 1
                continue
            tag = "hard" if richness < other else "normal" if richness == other else "easy"
            made.append(replace(pair, category=category, tags=(*pair.tags, tag)))
    if not made:
        raise Dropped("identical replies")
    return tuple(made)


def _numbered(row: dict[str, Any]) -> list[str]:
    """`response_1` … in their order."""
    found = [(int(match[1]), name) for name in row if isinstance(name, str) and (match := _NUMBERED.fullmatch(name))]
    return [name for _, name in sorted(found)]


def _is_best_of_k(row: dict[str, Any]) -> bool:
    return isinstance(row["scores"], list) and ("responses" in row or len(_numbered(row)) > 0)


def parse_best_of_k(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt`, `scores`, and `responses` or `response_1` … `response_K`: a score, or right and wrong, for each."""
    names = _numbered(row)
    texts = row["responses"] if "responses" in row else [row[name] for name in names]
    scores = row["scores"]
    if not isinstance(texts, list) or len(texts) != len(scores):
        found = f"{len(scores)} scores of {len(texts) if isinstance(texts, list) else shown(texts)} responses"
        raise DataError(f"expected a score for each response, found {found}", field="scores")
    replies = []
    for at, (text, score) in enumerate(zip(texts, scores, strict=True)):
        known = float(score) if isinstance(score, bool) else optional_number({f"scores[{at}]": score}, f"scores[{at}]")
        replies.append(Reply("" if text is None else as_text(text, f"response {at + 1}", notes), known))
    return replace(scored_of(row, asked(row, "prompt", notes), replies, notes), category=_category(row, notes))


_PAIR = frozenset({"prompt", "chosen", "rejected"})
_SCORED = (
    Format("best_of", Scored, _PAIR, parse_best_of, lambda row: is_best_of(row) and not _is_rm_bench(row)),
    Format("best_of_k", Scored, frozenset({"prompt", "scores"}), parse_best_of_k, _is_best_of_k),
)
FORMATS = (
    *_SCORED,
    *(compared(known) for known in _SCORED),
    Format("rewardbench", Comparison, _PAIR | {"subset"}, parse_rewardbench, lambda row: not is_best_of(row)),
    Format("rm_bench", Comparison, _PAIR | {"domain"}, parse_rm_bench, _is_rm_bench),
)
