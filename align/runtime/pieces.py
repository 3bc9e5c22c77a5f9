"""What a long command has made so far: pieces, each a whole file of JSON lines, in a folder of their own.

A folder of pieces has one writer at a time and says in its settings what the pieces are made with. After a kill the
same command goes on behind the pieces that are there; a command with other settings is refused. What is joined of all
pieces has the same bytes as if it had never been stopped, since a piece is made alike whenever it is made.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runtime import files
from align.runtime.errors import StorageError
from align.runtime.json_files import Row, read_object, read_objects
from align.runtime.lock import locked

SETTINGS = "settings.json"
_OURS = re.compile(r"\.locks|settings\.json|\d+\.jsonl|\..+\.tmp-.+")  # what such a folder may hold


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces in `folder`, numbered from 0."""

    folder: Path

    @property
    def there(self) -> int:
        """How many are there."""
        return sum(1 for _ in self.folder.glob("*.jsonl"))

    def make(self, number: int, rows: Callable[[], Iterable[Row]]) -> None:
        """Write piece `number`, unless it is there.

        Raises:
            StorageError: it cannot be written.
        """
        if not self._place(number).is_file():
            made = list(rows())  # first: what goes wrong in making it is no failure of the storage
            files.write_json_lines(self._place(number), made)

    def rows(self, count: int) -> Iterator[Row]:
        """The lines of the first `count` pieces, in order.

        Raises:
            RunFileError: one of them is missing or damaged.
        """
        for number in range(count):
            yield from read_objects(self._place(number), "remove it, and the same command makes it again")

    def _place(self, number: int) -> Path:
        return self.folder / f"{number}.jsonl"


@contextmanager
def pieces_in(folder: Path, made_with: Mapping[str, Any], *, command: str, keep: bool = False) -> Iterator[Pieces]:
    """The pieces of `folder`, held alone. They are removed when the block ends well; when it fails they stay.

    Args:
        made_with: what decides the pieces' content, as JSON; its keys are the words in which a difference is told.
        command: whose pieces they are, for the error of a second writer.
        keep: they stay in any case.

    Raises:
        StorageError: pieces of a command with other settings lie there, or something else; it cannot be written.
        FolderInUseError: another process is at work on them.
    """
    pieces = Pieces(folder)
    with locked(folder, [command]):
        _settle(pieces, made_with)
        try:
            yield pieces
        except BaseException:
            keep = pieces.there > 0
            raise
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _settle(pieces: Pieces, made_with: Mapping[str, Any]) -> None:
    """Write the settings, or compare them with what the pieces that are there were made with."""
    others = [one.name for one in pieces.folder.iterdir() if not _OURS.fullmatch(one.name)]
    if others:
        raise StorageError(f"{pieces.folder} holds {min(others)}, which is no piece of a command: name another place")
    file, asked = pieces.folder / SETTINGS, json.loads(json.dumps(made_with))
    kept = read_object(file, f"remove {pieces.folder}") or {}
    if not pieces.there:
        files.write_json(file, asked)
        return
    changed = ", ".join(name for name in {**kept, **asked} if kept.get(name) != asked.get(name))
    if changed:
        folder = pieces.folder
        raise StorageError(f"{folder} holds what another command made (other: {changed}): remove it to begin anew")
