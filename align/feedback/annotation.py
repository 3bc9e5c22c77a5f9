"""What is judged, by whom, and in which order: an annotation's state, without the page that shows it.

A share of the items, the overlap, goes to every annotator, so that their agreement can be measured; each of the others
goes to one. Whose it is follows from its id and the names of those who have come (rendezvous hashing, Thaler and
Ravishankar 1998): nobody hands anything out, and whoever comes later takes an equal part of what is left from each. Who
has judged all of their own gets what others have left. The order in which replies are shown follows from item and name,
so that it differs by annotator and their bias for a place can be measured.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from align.feedback.item_files import turn_text
from align.feedback.items import FeedbackItem
from align.feedback.judgments import HumanJudgment, JudgmentBook, Name, Undo, append, judgment_of, load_rows, same
from align.runtime.errors import AlignError
from align.runtime.json_files import Row

MOST_REPLIES = 9  # of an item; each has a key

_NAME = TypeAdapter(Name)


class AnnotationError(AlignError, ValueError):
    """A request for what there is not, or for what was settled otherwise."""


def shown_order(item: FeedbackItem, annotator: str) -> tuple[str, ...]:
    """Ids of the item's replies in the order in which this annotator sees them."""
    return tuple(sorted((one.id for one in item.replies), key=lambda reply: _drawn(item.id, annotator, reply)))


def _drawn(*words: str) -> bytes:
    """What chance would say of these words, always the same."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "backslashreplace")).digest()


def _alike(one: str, other: str) -> bool:
    return unicodedata.normalize("NFKC", one).casefold() == unicodedata.normalize("NFKC", other).casefold()


class Annotation:
    """Items, what was said of them, and who is to judge what.

    Args:
        items: with two to nine replies.
        path: where judgments are kept; what is there already counts.
        overlap: share of the items that every annotator gets, from 0 to 1.

    Raises:
        StorageError, JudgmentError: the file cannot be read.
    """

    def __init__(self, items: Sequence[FeedbackItem], path: str | Path, overlap: float):
        self.items = {item.id: item for item in items}
        self.path = Path(path)
        by_chance = sorted(self.items, key=lambda item: _drawn("overlap", item))
        self.overlap = frozenset(by_chance[: round(overlap * len(by_chance))])
        self._book = JudgmentBook(load_rows(path))
        self._names = list(self._book.annotators)
        self._owners: dict[str, str] = {}  # of every item, among the names so far

    def join(self, annotator: str) -> str:
        """Have somebody take part; the name, as whoever came under it first wrote it. Raises AnnotationError: it is
        none."""
        try:
            name = self._known(_NAME.validate_python(annotator))
        except ValidationError as error:
            raise AnnotationError(f"annotator: {error.errors()[0]['msg']}") from None
        if name not in self._names:
            self._names.append(name)
            self._owners.clear()
        return name

    def _known(self, name: str) -> str:
        """The name as it is known: a phone begins it with a capital, and one system composes what another does not."""
        return name if name in self._names else next((one for one in self._names if _alike(one, name)), name)

    def _owner(self, item: str) -> str:
        if item not in self._owners:
            self._owners[item] = max(self._names, key=lambda name: _drawn(item, name))
        return self._owners[item]

    def _open(self, annotator: str) -> tuple[list[str], list[str], int]:
        """The items that the annotator is still to judge, those that others have left, and how many are judged."""
        own, others, done = [], [], 0
        for item in self.items:
            by = self._book.judged_by(item)
            if annotator in by:
                done += 1
            elif item in self.overlap or (not by and self._owner(item) == annotator):
                own.append(item)
            elif not by:
                others.append(item)
        return own, others, done

    def state(self, annotator: str, item: str | None = None) -> Row:
        """What the page shows an annotator: how far they are, and an item (of this id, else the next), None at the
        end. Of a reply nothing but its text is told."""
        own, others, done = self._open(annotator)
        if item is None:
            item = next(iter(own or reversed(others)), None)  # the others' last: they begin with their first
        latest = self._latest(annotator)
        return {
            "annotator": annotator,
            "done": done,
            "total": done + len(own),
            "left_by_others": len(others),
            "latest": latest and latest.id,
            "item": item and self._shown(self.items[item], annotator),
        }

    def _latest(self, annotator: str) -> HumanJudgment | None:
        """The annotator's last judgment, None where it is of an item of another file."""
        latest = self._book.latest(annotator)
        return latest if latest and latest.item in self.items else None

    def _shown(self, item: FeedbackItem, annotator: str) -> Row:
        texts = {one.id: one.reply for one in item.replies}
        return {
            "id": item.id,
            "prompt": [{"role": turn.role, "content": turn_text(turn)} for turn in item.prompt],
            "replies": [{"id": one, "reply": texts[one]} for one in shown_order(item, annotator)],
        }

    def keep(self, row: Any) -> HumanJudgment | Undo:
        """Keeps a judgment or an undo: when this returns, the disk has it. One that is kept already stays kept once.

        Raises:
            JudgmentError: it is none.
            AnnotationError: of an item, or replies in an order, that were not shown to this annotator; an undo of what
                there is not; an id that something else has.
            StorageError: it could not be written.
        """
        now = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        said = judgment_of(row | now if isinstance(row, dict) else row)
        known = self._book.rows.get(said.id)
        if known is not None:
            if not same(known, said):
                raise AnnotationError(f"the id {said.id} is that of another judgment")
            return known
        if self._known(said.annotator) != said.annotator:
            raise AnnotationError(f"{said.annotator} is known as {self._known(said.annotator)}: reload the page")
        if isinstance(said, Undo):
            latest = self._latest(said.annotator)
            if latest is None or latest.id != said.undoes:
                told = "and this is not it: reload the page, which may be open twice"
                raise AnnotationError(f"only the latest judgment of an annotator can be undone, {told}")
        else:
            item = self.items.get(said.item)
            if item is None:
                raise AnnotationError("there is no such item")
            if said.shown != shown_order(item, said.annotator):
                raise AnnotationError("these are not the replies as this annotator was shown them")
        append(self.path, said)
        self._book.add(said)
        self.join(said.annotator)
        return said

    def undone(self, undo: Undo) -> HumanJudgment:
        """What was taken back."""
        return self._book.rows[undo.undoes]


def fit_to_show(items: Sequence[FeedbackItem]) -> tuple[list[FeedbackItem], int]:
    """The items with as many replies as a page can show, and how many others there are."""
    fit = [item for item in items if 2 <= len(item.replies) <= MOST_REPLIES]
    return fit, len(items) - len(fit)
