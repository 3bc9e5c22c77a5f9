"""What people said of collected replies: a JSON Lines file that only grows, a row a judgment or an undo.

A file has one writer at a time (`adding_to`). A row is flushed to the disk before anyone is told that it is kept. A
kill leaves at most the torn beginning of a row that nobody was told of; it is passed over when the file is read, and
any other line that is no row is an error: it may be a judgment that somebody's editor damaged. The latest judgment of
an annotator on an item counts, unless an undo takes it back, wherever that stands; then the one before it does. A row
that stands twice (a client that heard no answer and sent it again) counts once: its `id` is the client's.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, StrictStr, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError, from_json

from align.runtime.errors import AlignError, StorageError
from align.runtime.files import append_json_lines
from align.runtime.json_files import Row, json_lines
from align.runtime.lock import locked

STRENGTHS = ("negligibly", "slightly", "better", "significantly")
GRADES = {strength: grade for grade, strength in enumerate(STRENGTHS, start=1)}  # the scale of `align.data.pairs`
LONGEST_NAME = 60  # characters of an annotator's name

_STRICT = ConfigDict(extra="forbid")


class JudgmentError(AlignError, ValueError):
    """A row that is no judgment, or one of another item."""


def _wrong(problem: str) -> PydanticCustomError:
    return PydanticCustomError("judgment", problem.replace("{", "{{").replace("}", "}}"))


def _is_uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise _wrong("expected a UUID") from None


def _is_name(text: str) -> str:
    if not text.strip() or text != text.strip() or not text.isprintable() or len(text) > LONGEST_NAME:
        raise _wrong(f"expected a name of 1 to {LONGEST_NAME} printable characters")
    return text


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise _wrong("a reply is named twice")
    return values


def _is_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong("half of a surrogate pair, which is no character") from None
    return text


Id = Annotated[StrictStr, AfterValidator(_is_uuid)]
Name = Annotated[StrictStr, AfterValidator(_is_name)]
Text = Annotated[StrictStr, AfterValidator(_is_text)]
ReplyIds = Annotated[tuple[StrictStr, ...], AfterValidator(_each_once)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Edit:
    """A reply as somebody rewrote it: better than `of`, the reply it was made of."""

    of: StrictStr
    text: Annotated[Text, Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class HumanJudgment:
    """What one annotator said of the replies of one item.

    Attributes:
        id: made by the client, so that what is sent twice is kept once.
        shown: ids of the replies in the order in which they were shown.
        ranking: ids from the best to the worst, ties together; every reply that was shown, or, where all are bad,
            perhaps none.
        strength: by how much the best rank is better than the next one; None where that is not said, or there is none.
        unsafe: ids of replies flagged as unsafe.
        edited: one of the best rank (of any where there is no ranking), rewritten.
        seconds: from the moment the item was shown.
        time: when it was kept, ISO 8601.

    Raises:
        ValidationError: of pydantic; `judgment_of` makes a sentence of it.
    """

    id: Id
    item: StrictStr
    annotator: Name
    shown: Annotated[ReplyIds, Field(min_length=2)]
    ranking: tuple[tuple[StrictStr, ...], ...]
    strength: Literal["negligibly", "slightly", "better", "significantly"] | None = None
    all_bad: StrictBool = False
    unsafe: ReplyIds = ()
    edited: Edit | None = None
    comment: Text = ""
    seconds: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    time: StrictStr = ""

    def __post_init__(self) -> None:
        ranked = [reply for rank in self.ranking for reply in rank]
        if not all(self.ranking) or (sorted(ranked) != sorted(self.shown) and not (self.all_bad and not ranked)):
            raise _wrong("the ranking must name every reply that was shown once (it may be empty where all are bad)")
        if self.strength is not None and len(self.ranking) < 2:
            raise _wrong("a strength is said of two ranks or more, and of nothing else")
        if not set(self.unsafe) <= set(self.shown):
            raise _wrong("a reply is flagged as unsafe that was not shown")
        if self.edited and self.edited.of not in (self.ranking[0] if self.ranking else self.shown):
            raise _wrong("what is edited must be of the best rank")

    @property
    def grade(self) -> int | None:
        """The strength as a number, 1 (negligibly) to 4 (significantly)."""
        return None if self.strength is None else GRADES[self.strength]

    def as_row(self) -> Row:
        """The row that is kept."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Undo:
    """A judgment that its annotator takes back."""

    id: Id
    undoes: Id
    annotator: Name
    time: StrictStr = ""

    def as_row(self) -> Row:
        """The row that is kept."""
        return asdict(self)


def same(one: HumanJudgment | Undo, other: HumanJudgment | Undo) -> bool:
    """Whether they say the same, whenever they were sent."""
    first, second = (row.as_row() | {"seconds": None, "time": None} for row in (one, other))
    return first == second


_JUDGMENT, _UNDO = TypeAdapter(HumanJudgment), TypeAdapter(Undo)


def judgment_of(row: Any) -> HumanJudgment | Undo:
    """The judgment or undo that a row (JSON) is.

    Raises:
        JudgmentError: it is none; names the key.
    """
    adapter = _UNDO if isinstance(row, dict) and "undoes" in row else _JUDGMENT
    try:
        return adapter.validate_python(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise JudgmentError(f"{place}: {first['msg']}" if place else first["msg"]) from None


@contextmanager
def adding_to(path: Path) -> Iterator[None]:
    """Hold a file of judgments, whoever adds to it.

    Raises:
        FolderInUseError: another process does.
        StorageError: it, or its folder, cannot be written to.
    """
    file = path.resolve()
    if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
        raise StorageError(f"{path} is no file that can be written to: name another one with --out")
    with locked(file.parent, [f"adding to {file.name}"]):
        yield


def append(path: str | Path, row: HumanJudgment | Undo) -> None:
    """Adds a row to the file and flushes it to the disk.

    Raises:
        StorageError: it is not kept, or not known to be.
    """
    append_json_lines(path, [row.as_row()])


def load_rows(path: str | Path) -> list[HumanJudgment | Undo]:
    """All judgments and undos of a file in its order, each once; none where there is no such file.

    Raises:
        StorageError: the file cannot be read.
        JudgmentError: a line is none of them, and no torn beginning of one; names file, line and key.
    """

    def refuse(line: int, problem: str) -> None:
        if not _is_torn(lines[line - 1]):
            raise JudgmentError(f"{path}, line {line}: {problem}; mend the line or take it out")

    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "replace")  # a kill may have cut a character in two
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error})") from error
    lines, found = text.split("\n"), dict[str, HumanJudgment | Undo]()
    for line, row in json_lines(lines, refuse):
        try:
            one = judgment_of(row)
        except JudgmentError as error:
            raise JudgmentError(f"{path}, line {line}: {error}; mend the line or take it out") from None
        found.setdefault(one.id, one)
    return list(found.values())


def _is_torn(line: str) -> bool:
    """Whether a line is the beginning of a row; a crash of the machine may have left NULs in its place."""
    left = line.strip("\0\r")
    try:
        begun = not left or isinstance(from_json(left, allow_partial="trailing-strings"), dict)
        json.JSONDecoder().raw_decode(left)  # which `from_json` takes for a beginning of what follows
    except json.JSONDecodeError:
        return begun
    except (ValueError, RecursionError):
        return False
    return False


class JudgmentBook:
    """Which judgments count, kept up as rows come."""

    def __init__(self, rows: Iterable[HumanJudgment | Undo] = ()):
        self.rows: dict[str, HumanJudgment | Undo] = {}  # by id
        self._standing: dict[str, dict[str, HumanJudgment]] = {}  # by annotator and id: what was not undone
        self._of_item: dict[str, dict[str, list[HumanJudgment]]] = {}  # by item and annotator, likewise
        self._undone: set[tuple[str, str]] = set()  # annotator and id: an undo may be read before what it takes back
        for row in rows:
            self.add(row)

    def add(self, row: HumanJudgment | Undo) -> None:
        """Count a row; one whose id is known counts already."""
        if row.id in self.rows:
            return
        self.rows[row.id] = row
        standing = self._standing.setdefault(row.annotator, {})
        if isinstance(row, HumanJudgment):
            if (row.annotator, row.id) not in self._undone:
                standing[row.id] = row
                self._of_item.setdefault(row.item, {}).setdefault(row.annotator, []).append(row)
            return
        self._undone.add((row.annotator, row.undoes))
        if undone := standing.pop(row.undoes, None):
            said = self._of_item[undone.item][row.annotator]
            said.remove(undone)
            if not said:
                del self._of_item[undone.item][row.annotator]

    @property
    def annotators(self) -> list[str]:
        """Who said anything, in the order of their first rows."""
        return list(self._standing)

    def judged_by(self, item: str) -> list[str]:
        """Who has a judgment on the item."""
        return list(self._of_item.get(item, ()))

    def latest(self, annotator: str) -> HumanJudgment | None:
        """The judgment that the annotator said last and did not undo."""
        return next(reversed(self._standing.get(annotator, {}).values()), None)

    def counting(self) -> list[HumanJudgment]:
        """Of each annotator on each item the latest that was not undone, in the order they were said."""
        latest = {said[-1].id for by in self._of_item.values() for said in by.values()}
        return [row for row in self.rows.values() if row.id in latest]


def load_judgments(path: str | Path) -> list[HumanJudgment]:
    """The judgments of a file that count; see `load_rows` and `JudgmentBook`."""
    return JudgmentBook(load_rows(path)).counting()
