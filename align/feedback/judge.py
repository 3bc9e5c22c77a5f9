"""Judges in the place of people: rankings of collected replies by a reward, a function or a language model.

Every two replies of an item are compared. A reply's points are its wins and half of its ties, and points are the ranks:
of two replies that is the verdict, of more the order, where the verdicts have one. A judge with scores says a strength
too: scores have no unit that two rewards share, so that the gaps between each item's best and next rank are cut into
quarters, the widest of them `significantly`. One without scores says none.

What was compared is kept beside the judgments as it comes, so that nothing is asked twice after a kill. A judgment's id
is made of the judge's settings and the item: who asks the same again changes nothing, and another judge of that name
judges anew, which then counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from align.data.replies import PromptedReply
from align.evaluation.scoring import samples_for
from align.evaluation.wins import WORTH
from align.feedback.items import FeedbackItem
from align.feedback.judgments import (
    LONGEST_NAME,
    STRENGTHS,
    HumanJudgment,
    JudgmentBook,
    JudgmentError,
    Undo,
    judgment_of,
    load_rows,
)
from align.runtime.files import append_json_lines, remove
from align.runtime.json_files import Row, objects, read_text
from data_formats.columns import with_all_columns
from data_formats.writing import as_row
from reward.judges.protocol import Judge, Judgment, ReplyPair
from reward.protocol import prompt_columns

AT_ONCE = 256  # items that a judge gets in one call
NAMESPACE = uuid.UUID("0b5c1c2e-7d0b-4d0c-9a52-6a3f2f7f9c11")
Compared = list[list[Row]]  # of each two replies, in the item's order, what was said of them (judgments as JSON)


@dataclass(slots=True)
class ByJudge:
    """What came of judging: the new judgments, how many items had theirs before, and how many have none, by reason;
    `note` is what a judge said in the place of its first missing verdict."""

    there: int
    new: list[HumanJudgment] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)
    note: str = ""


def judge_items(
    judge: Judge,
    items: Sequence[FeedbackItem],
    path: Path,
    *,
    name: str = "",
    settings: Mapping[str, Any],
    told: Callable[[int], None] = lambda done: None,
) -> ByJudge:
    """Judge those items that are not judged yet, and add the judgments to the file.

    Args:
        path: the file of judgments.
        name: of the judge among the annotators (default: its own); of a judge that is several people, each has theirs.
        settings: what the judgments depend on, as JSON.
        told: is called with the number of items that are done.

    Raises:
        RewardError: the judge failed; what was compared before is kept.
        JudgmentError: a row of the file that is none; a name that no annotator can have.
        StorageError: the file cannot be written.
    """
    name = name or judge.name
    if len(name) > LONGEST_NAME:
        raise JudgmentError(f"the judge's name {name!r} is longer than {LONGEST_NAME} characters; give it another")
    kept = path.with_name(f".{path.name}.{name}.compared")
    keys = {item.id: _key(item, name, settings) for item in items}
    before = _Before(load_rows(path), keys)
    columns = {
        one.id: prompt_columns(prompt)
        for one, prompt in zip(items, with_all_columns([one.asked for one in items]), strict=True)
    }
    asked = [item for item in items if len(item.replies) > 1 and item.id not in before.judged]
    result = ByJudge(there=len(before.judged))
    if alone := sum(len(item.replies) < 2 for item in items):
        result.without["a single reply"] = alone
    rankings = [
        ranking
        for item, compared in zip(asked, _compared(judge, asked, columns, keys, kept, told), strict=True)
        for ranking in _rankings(item, compared, name, result)
    ]
    now, strengths = datetime.now(UTC).isoformat(timespec="seconds"), _strengths([one.gap for one in rankings])
    for ranking, strength in zip(rankings, strengths, strict=True):
        row = {
            "id": before.new_id(ranking.item.id, ranking.annotator),
            "item": ranking.item.id,
            "annotator": ranking.annotator,
            "shown": ranking.shown,
            "ranking": ranking.ranks,
            "strength": strength,
            "comment": ranking.comment,
            "time": now,
        }
        result.new.append(judgment_of(row))
    append_json_lines(path, [one.as_row() for one in result.new])
    remove(kept)
    return result


class _Before:
    """What stands in a file of judgments, and the ids of what is added to it.

    An id is made of the key that tells judge, settings and item, and of how many judgments the annotator had on the
    item before: who judges again after another judge of that name is not taken for the first time.

    Attributes:
        judged: the items on which a judgment of such a key counts.
    """

    def __init__(self, rows: Sequence[HumanJudgment | Undo], keys: Mapping[str, str]):
        self._keys, self._ids = keys, defaultdict[tuple[str, str], list[str]](list)
        for one in rows:
            if isinstance(one, HumanJudgment):
                self._ids[one.item, one.annotator].append(one.id)
        self.judged = {one.item for one in JudgmentBook(rows).counting() if one.item in keys and self._is_of_key(one)}

    def new_id(self, item: str, annotator: str) -> str:
        return self._id(item, annotator, len(self._ids[item, annotator]))

    def _is_of_key(self, one: HumanJudgment) -> bool:
        at = self._ids[one.item, one.annotator].index(one.id)
        return one.id == self._id(one.item, one.annotator, at)

    def _id(self, item: str, annotator: str, at: int) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self._keys[item]}/{annotator}/{at}"))


def _key(item: FeedbackItem, name: str, settings: Mapping[str, Any]) -> str:
    replies = [[one.id, one.reply] for one in item.replies]
    told = json.dumps([name, as_row(item.asked), replies, settings], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _compared(
    judge: Judge,
    items: Sequence[FeedbackItem],
    columns: Mapping[str, dict[str, Any]],
    keys: Mapping[str, str],
    kept: Path,
    told: Callable[[int], None],
) -> list[Compared]:
    """What is said of each two replies of each item; asked where it is not kept, or came to no verdict."""
    known = {row["key"]: row["compared"] for row in objects(read_text(kept))[0]}
    found: list[Compared] = []
    for start in range(0, len(items), AT_ONCE):
        some = items[start : start + AT_ONCE]
        missing = [item for item in some if keys[item.id] not in known]
        pairs = [_pairs(judge, item, columns[item.id]) for item in missing]
        said = iter(judge.compare([pair for own in pairs for pair in own]) if missing else ())
        rows = []
        for item, own in zip(missing, pairs, strict=True):
            compared = [[_as_object(one) for one in next(said)] for _ in own]
            rows.append({"key": keys[item.id], "compared": compared})
            known[keys[item.id]] = compared
        if rows:
            append_json_lines(kept, [row for row in rows if _has_verdicts(row["compared"])])
        found += [known[keys[item.id]] for item in some]
        told(start + len(some))
    return found


def _pairs(judge: Judge, item: FeedbackItem, columns: dict[str, Any]) -> list[ReplyPair]:
    """Each two replies of an item; a reply is the same `Sample` in all of its pairs, so that it is scored once."""
    given = [PromptedReply(item.prompt, reply.reply, item.tools, columns) for reply in item.replies]
    return [ReplyPair(*sides) for sides in combinations(samples_for(getattr(judge, "reward", None), given), 2)]


def _has_verdicts(compared: Compared) -> bool:
    return all(one["winner"] is not None for said in compared for one in said)


def _as_object(judgment: Judgment) -> Row:
    """As JSON."""
    return asdict(judgment) | {"scores": None if judgment.scores is None else list(judgment.scores)}


@dataclass(frozen=True, slots=True)
class _Ranking:
    """What one annotator comes to on an item; `gap` is that of the scores of the best rank and the next."""

    item: FeedbackItem
    annotator: str
    shown: list[str]
    ranks: list[list[str]]
    gap: float | None
    comment: str


def _rankings(item: FeedbackItem, compared: Compared, name: str, result: ByJudge) -> Iterator[_Ranking]:
    """The rankings that the verdicts on the pairs of an item come to, one an annotator: of the replies
    that were compared, each two of which need a verdict."""
    every = [reply.id for reply in item.replies]
    by_annotator: dict[str, list[tuple[tuple[str, str], Row]]] = defaultdict(list)
    for pair, said in zip(combinations(every, 2), compared, strict=True):
        for one in said:
            by_annotator[one["by"] or name].append((pair, one))
    for annotator, verdicts in by_annotator.items():
        notes = list(dict.fromkeys(one["note"] for _, one in verdicts if one["note"]))
        names = [reply for reply in every if any(reply in pair for pair, _ in verdicts)]
        if len(verdicts) < math.comb(len(names), 2) or any(one["winner"] is None for _, one in verdicts):
            result.without[f"no verdict of {annotator}"] += 1
            result.note = result.note or next((one["note"] for _, one in verdicts if one["winner"] is None), "")
            continue
        points, scores = dict.fromkeys(names, 0.0), dict[str, float]()
        for pair, one in verdicts:
            points[pair[0]] += 1 - WORTH[one["winner"]]
            points[pair[1]] += WORTH[one["winner"]]
            scores |= dict(zip(pair, one["scores"] or (), strict=False))
        order = sorted(names, key=lambda reply: -points[reply])
        ranks = [list(own) for _, own in groupby(order, key=points.__getitem__)]
        known = len(ranks) > 1 and ranks[0][0] in scores and ranks[1][0] in scores
        gap = scores[ranks[0][0]] - scores[ranks[1][0]] if known else None
        told = ", ".join(f"{reply} {score:g}" for reply, score in scores.items())
        comment = "; ".join([*[f"scores {told}"] * bool(told), *notes]).encode("utf-8", "replace").decode()
        yield _Ranking(item, annotator, names, ranks, gap, comment)
    if not by_annotator:
        result.without["nothing said of its replies"] += 1


def _strengths(gaps: Sequence[float | None]) -> list[str | None]:
    """The quarter that each gap is in, by its middle rank among all: equal gaps are never parted."""
    ordered = sorted(gap for gap in gaps if gap is not None)
    return [
        None
        if gap is None
        else STRENGTHS[len(STRENGTHS) * (bisect_left(ordered, gap) + bisect_right(ordered, gap)) // (2 * len(ordered))]
        for gap in gaps
    ]
