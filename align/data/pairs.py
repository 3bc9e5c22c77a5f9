"""Preferences -> groups of replies to one prompt, with the pairs that are to be learnt.

One `Group` is one item of a reward trainer: a prompt, K replies and the pairs among them, whatever it came from:
- `Comparison`: two replies, one pair, with the margin of its grade;
- `Scored`: K replies, every pair of different scores (InstructGPT, 2203.02155, section 3.4); a reply edited by hand
  above the chosen above the rejected one (Llama 3, section 4.2.1) is such a ranking of three;
- binarised (Askell et al. 2021, 2112.00861): a pair A > B gives "GOOD:A > BAD:A" and "BAD:B > GOOD:B", two
  groups with the marker at the head of the reply.

Whatever is left out is counted by reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NotRequired, TypedDict

from align.data.encode import (
    OnOverlong,
    encode_between,
    encode_prompts,
    encode_replies,
    fit_prompt,
    overlong_error,
    part_of,
)
from data_formats.chatml import reply_text, with_reasoning
from data_formats.errors import DataError
from data_formats.formats import Dropped
from data_formats.records import Comparison, Message, Scored
from data_formats.scored import pairs as scored_pairs

Ties = Literal["drop", "soft"]
GOOD, BAD = "GOOD:", "BAD:"
MARGIN_TABLES: dict[str, dict[int, float]] = {  # Touvron et al. 2023 (Llama 2), table 27; grades as below
    "small": {4: 1.0, 3: 2 / 3, 2: 1 / 3, 1: 0.0},
    "large": {4: 3.0, 3: 2.0, 2: 1.0, 1: 0.0},
}
SIGNIFICANTLY, BETTER, SLIGHTLY, NEGLIGIBLY = 4, 3, 2, 1  # grades of the four-step scale


@dataclass(frozen=True, slots=True)
class Pair:
    """Reply `better` above reply `worse` (indices), by `margin`; `target` is the probability that it is so."""

    better: int
    worse: int
    margin: float = 0.0
    target: float = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """Replies to one prompt and the pairs among them.

    What was thought before a reply stands in its text (`data_formats.chatml.reply_text`). `between`, where not empty:
    for each reply the turns that stand between the prompt and it. `part`: of a mixture, where there is one.
    """

    prompt: tuple[Message, ...]
    replies: tuple[str, ...]
    pairs: tuple[Pair, ...]
    source: str = ""
    tools: tuple[str, ...] = ()
    between: tuple[tuple[Message, ...], ...] = ()
    part: str = ""


def grade_margin(grade: float | None, table: str, scale: float = 1.0) -> float:
    """The margin of a grade: `none` 0; `small` and `large` as Llama 2 on the grades 1 (negligibly better) to 4
    (significantly better); `scale` the grade itself times `scale`. A pair without grade has none.

    Raises:
        DataError: a grade that is not finite, or not one of the table's four.
    """
    if table == "none" or grade is None:
        return 0.0
    if not math.isfinite(grade):
        raise DataError(f"grade {grade} is not a number; correct the data, or leave the grade out")
    if table == "scale":
        return scale * abs(grade)
    known = MARGIN_TABLES[table]
    if grade not in known:
        raise DataError(
            f"grade {grade:g} is not one of 1, 2, 3, 4, which margin '{table}' knows; use margin 'scale' for others"
        )
    return known[int(grade)]


def ranked_pairs(scores: Sequence[float | None], ties: Ties = "drop") -> tuple[tuple[Pair, ...], int]:
    """Every pair of replies with different scores, the better first, and the number of ties among the others.

    Ties are left out, or, with "soft", kept with target 0.5. Replies without a score are in no pair.

    Raises:
        DataError: a score is NaN or infinite.
    """
    if bad := [score for score in scores if score is not None and not math.isfinite(score)]:
        raise DataError(f"score {bad[0]} of a reply is not finite; correct the data, or leave the score out")
    found, tied = [], 0
    for a, first in enumerate(scores):
        for b, second in enumerate(scores[a + 1 :], start=a + 1):
            if first is None or second is None:
                continue
            if first != second:
                found.append(Pair(a, b) if first > second else Pair(b, a))
                continue
            tied += 1
            if ties == "soft":
                found.append(Pair(a, b, target=0.5))
    return tuple(found), tied


def strong_enough(comparisons: Sequence[Comparison], least: float | None) -> tuple[list[Comparison], dict[str, int]]:
    """Those of grade `least` or more, and those without any grade; the others counted (Llama 3 keeps 3 and 4)."""
    if least is None:
        return list(comparisons), {}
    kept = [pair for pair in comparisons if pair.grade is None or pair.grade >= least]
    dropped = len(comparisons) - len(kept)
    return kept, {f"grade below {least:g}": dropped} if dropped else {}


def make_groups(
    records: Sequence[Comparison | Scored],
    *,
    margin: str = "none",
    margin_scale: float = 1.0,
    ties: Ties = "drop",
    join: bool = False,
) -> tuple[list[Group], dict[str, int]]:
    """Groups in the records' order, and what was left out by reason.

    Args:
        margin, margin_scale: see `grade_margin`.
        ties: what becomes of equal scores among scored replies; pairs of equal replies are always left out.
        join: make one group of all those of the same prompt and source.

    Raises:
        DataError: a grade or score that is not finite, or outside the margin's table; names the record.
    """
    groups: list[Group] = []
    counts: Counter[str] = Counter()
    for index, record in enumerate(records):
        between = _between(record)
        try:
            if isinstance(record, Comparison):
                replies = tuple(map(reply_text, (record.chosen_reply, record.rejected_reply)))
                pairs: tuple[Pair, ...] = (Pair(0, 1, grade_margin(record.grade, margin, margin_scale)),)
            else:
                replies = tuple(reply_text(reply.turn) for reply in record.replies)
                scores = [reply.score for reply in record.replies]
                pairs, tied = ranked_pairs(scores, ties)
                pairs = tuple(
                    pair
                    if pair.target == 0.5
                    else replace(
                        pair, margin=grade_margin(scores[pair.better] - scores[pair.worse], margin, margin_scale)
                    )
                    for pair in pairs
                )
                counts["ties dropped" if ties == "drop" else "ties as soft labels"] += tied
        except DataError as error:
            raise DataError(f"preference {index} ({record.source or 'no source'}): {error}") from None
        different = tuple(pair for pair in pairs if between or replies[pair.better] != replies[pair.worse])
        counts["pairs of identical replies"] += len(pairs) - len(different)
        if not different:
            counts["prompts without a pair"] += 1
            continue
        about = (record.source, record.tools, between, record.part)
        groups.append(Group(record.prompt, replies, different, *about))
    return joined(groups) if join else groups, {reason: count for reason, count in counts.items() if count}


def _between(record: Comparison | Scored) -> tuple[tuple[Message, ...], ...]:
    """`Group.between`."""
    sides = (record.chosen_turns, record.rejected_turns) if isinstance(record, Comparison) else ()
    return sides if any(sides) else ()


def plain_groups(comparisons: Sequence[Comparison]) -> list[Group]:
    """A group of one pair for each, without margin: how held-out pairs are measured."""
    one = (Pair(0, 1),)
    return [
        Group(
            pair.prompt,
            (reply_text(pair.chosen_reply), reply_text(pair.rejected_reply)),
            one,
            tools=pair.tools,
            between=_between(pair),
            part=pair.part,
        )
        for pair in comparisons
    ]


def binarised(groups: Sequence[Group]) -> list[Group]:
    """Each pair as two groups of one pair: "GOOD:A" above "BAD:A", and "BAD:B" above "GOOD:B" (Askell et al. 2021).

    The marker follows what was thought before the reply.
    """
    found = []
    for group in groups:
        for pair in group.pairs:
            better, worse = group.replies[pair.better], group.replies[pair.worse]
            one = Pair(0, 1, pair.margin, pair.target)
            for reply, text, markers in ((pair.better, better, (GOOD, BAD)), (pair.worse, worse, (BAD, GOOD))):
                between = (group.between[reply],) * 2 if group.between else ()
                marked = tuple(_marked(text, marker) for marker in markers)
                found.append(replace(group, replies=marked, pairs=(one,), between=between))
    return found


def _marked(reply: str, marker: str) -> str:
    (turn,) = with_reasoning([Message("assistant", reply)])
    return reply_text(replace(turn, content=marker + turn.content))


def joined(groups: Sequence[Group]) -> list[Group]:
    """Groups of the same prompt, tools, source and part as one, where the first of them stood; equal replies are one.

    Those with turns between the prompt and their replies stay alone.
    """
    found: dict[tuple[Any, ...], Group] = {}
    for number, group in enumerate(groups):
        key = (group.prompt, group.source, group.part, group.tools, number if group.between else None)
        if key not in found:
            found[key] = group
            continue
        first = found[key]
        replies = list(dict.fromkeys((*first.replies, *group.replies)))
        pairs = [
            replace(pair, better=replies.index(of.replies[pair.better]), worse=replies.index(of.replies[pair.worse]))
            for of in (first, group)
            for pair in of.pairs
        ]
        found[key] = replace(first, replies=tuple(replies), pairs=tuple(pairs))
    return list(found.values())


def compared(records: Sequence[Comparison | Scored]) -> tuple[list[Comparison], dict[str, int]]:
    """Every pair of different scores as a comparison, its grade the difference; and what was left out, by reason."""
    found: list[Comparison] = []
    counts: Counter[str] = Counter()
    for record in records:
        try:
            found += [record] if isinstance(record, Comparison) else scored_pairs(record, counts)
        except Dropped as dropped:
            counts[str(dropped)] += 1
    return found, dict(counts)


class GroupRow(TypedDict):
    """An encoded group: each reply ends with the id of `<|im_end|>`; pairs are (better, worse, margin, target)."""

    prompt_ids: list[int]
    reply_ids: list[list[int]]
    pairs: list[tuple[int, int, float, float]]
    part: NotRequired[str]


def encode_groups(
    tokenizer: Any, groups: Sequence[Group], max_length: int, on_overlong: OnOverlong
) -> tuple[list[GroupRow], list[int], dict[str, int]]:
    """Rows in order, the index in `groups` of each, and how many were dropped or truncated, by reason.

    A group is too long when its prompt and its longest reply are: the oldest turns of the prompt are cut, for all of
    its replies alike, and replies stay whole (see `align.data.encode`).

    Raises:
        DataError: `on_overlong` is "error" and a group is too long.
    """
    prompts = encode_prompts(tokenizer, [group.prompt for group in groups], [group.tools for group in groups])
    flat = iter(encode_replies(tokenizer, [reply for group in groups for reply in group.replies]))
    rows: list[GroupRow] = []
    kept: list[int] = []
    counts: Counter[str] = Counter()
    for index, group in enumerate(groups):
        replies = [next(flat) for _ in group.replies]
        for at, turns in enumerate(group.between):
            between = encode_between(tokenizer, group.prompt, turns, group.tools, prompts[index])
            replies[at] = between + replies[at]
        longest = max(map(len, replies))
        ids: list[int] | None = prompts[index]
        if len(prompts[index]) + longest > max_length:
            if on_overlong == "error":
                raise overlong_error("comparison", index, len(prompts[index]) + longest, max_length)
            room = max_length - longest
            ids = fit_prompt(tokenizer, group.prompt, room, group.tools) if on_overlong == "truncate" else None
            counts["longer than max_length" if ids is None else "truncated"] += 1
        if ids is None:
            continue
        pairs = [(pair.better, pair.worse, pair.margin, pair.target) for pair in group.pairs]
        kept.append(index)
        rows.append(GroupRow(prompt_ids=ids, reply_ids=replies, pairs=pairs, **part_of(group)))
    return rows, kept, dict(counts)
