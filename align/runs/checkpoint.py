"""`checkpoints/step-N`: whole or not there.

A step is written into a temporary folder, gets a `manifest.json` (size and CRC-32 of every file), is flushed to the
disk, and only then takes its name; older steps are removed after that. A kill at any moment leaves the step before it
or the new one, complete. The manifest finds what a filesystem lost or cut afterwards; it is no protection against
someone who means harm.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from align.runs.errors import CheckpointError
from align.runtime.errors import MissingFileError, StorageError
from align.runtime.files import put_dir, remove, storage_errors, sweep, temporary, write_json
from align.runtime.json_files import RunFileError, read_object
from align.runtime.ranks import agree, is_main

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(0|[1-9][0-9]*)")


def save(folder: str | Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Writes `<folder>/step-<step>` and removes the oldest steps beyond `keep`. Collective: every rank calls it.

    Steps after this one are removed too: they belong to a run that was left when this one resumed further back.

    Args:
        write: puts the files into the folder it is given, which the first rank makes and names; called on every rank.

    Raises:
        StorageError: the disk is full or not writable; the older steps are intact.
    """
    folder, main = Path(folder), is_main()
    target = folder / f"step-{step}"
    draft = temporary(target, "ranks")

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        draft.mkdir()

    def finish() -> None:
        _write_manifest(draft)
        put_dir(draft, target)
        _remove_others(folder, step, keep)

    def stored(part: Callable[[], None], mine: bool) -> None:
        told = f"cannot write {target}: another rank failed (see its message)"
        agree(storage_errors(target)(part), lambda _: StorageError(told), mine=mine)

    try:
        stored(prepare, main)
        stored(lambda: write(draft), True)
        stored(finish, main)
    except BaseException:
        if main:
            remove(draft)
        raise
    return target


def steps(folder: str | Path) -> list[int]:
    """The steps that are there, in ascending order, sound or not; a plain file of such a name is none."""
    folder = Path(folder)
    entries = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    found = [_STEP.fullmatch(entry.name) for entry in entries]
    return sorted(int(match.group(1)) for match in found if match)


def latest(folder: str | Path) -> Path | None:
    """The newest sound step, None when there is none. Damaged ones are passed over with a warning."""
    for step in reversed(steps(folder)):
        path = Path(folder) / f"step-{step}"
        try:
            verify(path)
        except (CheckpointError, MissingFileError) as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
        else:
            return path
    return None


def step_of(path: str | Path) -> int:
    """N of `.../step-N`. Raises CheckpointError for another name."""
    match = _STEP.fullmatch(Path(path).name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint folder: its name must be step-N")
    return int(match.group(1))


def verify(path: str | Path) -> None:
    """Checks every file of a step against its manifest.

    Raises:
        MissingFileError: there is no such folder.
        CheckpointError: no manifest, or a file that is missing, of another size, or of other content.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingFileError(f"{path}: no such checkpoint folder")
    try:
        files = (read_object(path / MANIFEST, "") or {})["files"]
        wanted = [(name, entry["size"], entry["crc32"]) for name, entry in files.items()]
    except (RunFileError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path}: no readable {MANIFEST}, so this checkpoint is not complete; remove it"
        ) from None
    for name, size, crc in wanted:
        if problem := _problem(path / name, size, crc):
            raise CheckpointError(f"{path / name}: {problem}; remove {path} and resume from an earlier step")


def _problem(file: Path, size: int, crc: int) -> str:
    if not file.is_file():
        return "missing from the checkpoint"
    if (found := file.stat().st_size) != size:
        return f"not whole ({found} of {size} bytes)"
    try:
        return "" if _crc32(file) == crc else "content is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "crc32": _crc32(file)} for file in files
    }
    write_json(folder / MANIFEST, {"files": entries})


def _crc32(file: Path) -> int:
    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def keep_newest(folder: str | Path, number: int) -> int:
    """Remove all but the newest `number` steps of a run that is finished; returns how many went."""
    found = steps(folder)
    gone = found[: max(len(found) - number, 0)]
    _remove(Path(folder), gone)
    return len(gone)


def _remove_others(folder: Path, step: int, keep: int) -> None:
    older = [other for other in steps(folder) if other < step]
    stale = [other for other in steps(folder) if other > step]
    _remove(folder, stale + older[: max(len(older) - max(keep - 1, 0), 0)])


def _remove(folder: Path, doomed_steps: list[int]) -> None:
    for other in doomed_steps:
        old = folder / f"step-{other}"
        doomed = temporary(old)  # a kill while removing must not leave half a step under its name
        try:
            os.rename(old, doomed)
        except OSError as error:  # the new step is safe, which is what matters
            logger.warning("cannot remove the old checkpoint %s: %s", old, error)
        remove(doomed)
