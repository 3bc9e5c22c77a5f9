"""Files and folders that take their names whole: the one way in which anything is written.

What is written lies beside its target under a temporary name, `.NAME.tmp-…`, is flushed to the disk (fsync) and takes
the name in one step, so a reader sees the old or the new content, whole, whatever happens in between. A killed process
leaves at most such a temporary name, which the next write of the same target removes, and `sweep` wherever a folder's
owner starts again. Inside a folder that waits for its own name nothing needs a second one (`is_temporary`). Failures of
the storage (full disk, no permission, quota) become `StorageError`; what was there before is intact.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any

from align.runtime.errors import AlignError, StorageError, reason_of

_NAME = re.compile(r"\..+\.tmp-[^.]*")
_ASIDE = re.compile(r"\.(.+)\.old-\w{8}")
_DRAFT, _DRAFT_SIZE = ".draft", 1 << 12

# Libraries written in other languages wrap the system's error in their own; these words are all they leave of it.
# (safetensors: "I/O error: … (os error 28)"; torch.save: "[enforce fail at inline_container.cc…] unexpected pos", or,
# when only the last bytes do not fit, "basic_ios::clear: iostream error").
_TORCH_WORDS = ("inline_container", "iostream error")
_STORAGE_WORDS = ("no space left", "file too large", "i/o error", "os error", *_TORCH_WORDS)


@contextmanager
def storage_errors(path: str | Path, doing: str = "write") -> Iterator[None]:
    """Turns failures of the storage inside the block into one `StorageError` naming `path`; others pass unchanged."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or any(word in str(error).lower() for word in _STORAGE_WORDS):
            raise StorageError(f"cannot {doing} {path}: {_reason(error)} (what was there before is intact)") from error
        raise


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or reason_of(error)
    if any(word in text for word in _TORCH_WORDS):
        return "torch could not write the whole file; is the disk full?"
    named = getattr(error, "filename", None)
    return f"{text}: {named}" if named else text


def temporary(path: Path, mark: str | None = None) -> Path:
    """A temporary name beside `path`: one of its own, or, with `mark`, the one that all ranks know."""
    return path.parent / f".{path.name}.tmp-{mark or f'{os.getpid()}-{uuid.uuid4().hex[:8]}'}"


def is_temporary(name: str) -> bool:
    """Whether `name` is one of those that are written under."""
    return bool(_NAME.fullmatch(name))


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left behind."""
    for leftover in path.parent.glob(f".{escape(path.name)}.tmp-*"):
        remove(leftover)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO]:
    """An open file that takes the place of `path` when the block ends well, else is removed; makes the folder.

    Args:
        mode: `w` for text (UTF-8, half a surrogate pair as JSON's escape of it, lines end with \\n) or `wb`.

    Raises:
        OSError: what was at `path` before is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    draft, text = temporary(path), {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    try:
        with open(draft, mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        remove(draft)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk (where the system can do that for folders)."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically; makes the folder when it is missing. Raises StorageError."""
    with storage_errors(path), atomic_file(Path(path)) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Not-finite numbers are refused (ValueError): JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes `rows` one JSON object a line, atomically, as they come. Raises StorageError."""
    with storage_errors(path), atomic_file(Path(path)) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append_json_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds `rows` to the file, one JSON object a line, in one piece; makes the folder when it is missing.

    A kill leaves at most a part of them behind the others, and what is added next begins on a line of its own.
    Not-finite numbers are refused (ValueError): JSON has none. Raises StorageError.
    """
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with storage_errors(path, "append to"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(("\n" * torn + text).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())


def stamp(path: str | Path) -> list[list[Any]]:
    """Names, sizes and times of a file, or of those in a folder but for its README.md, which is for people: whether
    something was changed since. Empty for what is neither (a hub id, "")."""
    if not str(path):
        return []
    place = Path(path).expanduser()
    inside = [place]
    if place.is_dir():
        inside = [file for file in sorted(place.iterdir()) if file.name != "README.md"]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in inside if file.is_file()]


def is_newer(file: Path, other: Path) -> bool:
    """Whether `file` is there and was written after `other`, or with it."""
    return file.is_file() and file.stat().st_mtime >= other.stat().st_mtime


def require_new(folder: Path, what: str) -> None:
    """Raises StorageError where `folder` holds something. `what` was to be done, a verb for the sentence."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} holds something already: {what} to a folder that does not exist yet")


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Gives an empty temporary folder; when the block ends well it takes the place of `path`, else it is removed.

    An older folder at `path` is replaced in one step where the system can exchange two names (Linux), else in two, and
    a kill between these is healed by the next `atomic_dir` or `heal` of the same path.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        heal(path)
        remove_leftovers(path)
        draft = temporary(path)
        draft.mkdir()
        try:
            yield draft
            put_dir(draft, path)
        except BaseException:
            remove(draft)
            raise


def put_dir(draft: Path, path: Path) -> None:
    """Flushes the folder `draft` to the disk and gives it the name `path`; an older folder of that name goes."""
    for folder, _, names in os.walk(draft):
        for name in names:
            fsync(Path(folder) / name)
        fsync(Path(folder))
    if path.exists():
        _swap(draft, path)
        remove(draft)
    else:
        os.rename(draft, path)
    fsync(path.parent)


def heal(path: Path) -> None:
    """Puts back a folder that a kill caught between the two renames of a replacement."""
    for old in sorted(path.parent.glob(f".{escape(path.name)}.old-*")):
        if not path.exists():
            os.rename(old, path)
        else:
            shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Heal what a kill caught half replaced in `folder`, and below, and remove what killed writers left there.

    To be called by whoever holds the folder alone (`align.runtime.lock`): what another process has begun to write goes.
    """
    for place, folders, names in os.walk(folder):
        for name in [name for name in folders if _ASIDE.fullmatch(name)]:
            heal(Path(place) / _ASIDE.fullmatch(name)[1])
        for name in filter(is_temporary, [*folders, *names]):
            remove(Path(place) / name)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _swap(new: Path, path: Path) -> None:
    """Exchanges two folders' names; where the system cannot, the old one goes aside first (see `heal`)."""
    with suppress(AttributeError, OSError):
        at_here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        if rename(at_here, os.fsencode(new), at_here, os.fsencode(path), exchange) == 0:
            return
    aside = path.parent / f".{path.name}.old-{uuid.uuid4().hex[:8]}"  # as `_ASIDE` knows it
    os.rename(path, aside)
    os.rename(new, path)
    shutil.rmtree(aside, ignore_errors=True)


def prove_folder(folder: Path) -> None:
    """Try whether a folder can be written, by the renames of what will be written there.

    Writes a file into `folder` (where that is not there yet, into the first one above it that is) and removes it.
    No folder is made: whoever watches the run sees none come and go.

    Raises:
        StorageError: nothing can be written there.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise StorageError(f"{there} is a file: move it away, a folder of that name will be written")
    write_text(there / _DRAFT, "." * _DRAFT_SIZE)
    (there / _DRAFT).unlink(missing_ok=True)
