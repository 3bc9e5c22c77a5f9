"""Writing files and folders so that a reader sees the old or the new one, whole, whatever happens in between.

Everything is written under a temporary name in the target's own folder, flushed to the disk (fsync), then renamed. A
killed process leaves at most a temporary name (`.NAME.tmp-…`), which the next write of the same target removes.
Failures of the storage (full disk, no permission, quota) become `StorageError`; what was there before is intact.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_formats.errors import AlignError, StorageError

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
    text = getattr(error, "strerror", None) or (str(error).strip() or repr(error)).splitlines()[0]
    if any(word in text for word in _TORCH_WORDS):
        return "torch could not write the whole file; is the disk full?"
    named = getattr(error, "filename", None)
    return f"{text}: {named}" if named else text


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically; makes the folder when it is missing. Raises StorageError."""
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary = _temporary(path)
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Not-finite numbers are refused (ValueError): JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            put_dir(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def put_dir(temporary: Path, path: Path) -> None:
    """Flushes the folder `temporary` to the disk and gives it the name `path`; an older folder of that name goes."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            fsync(Path(folder) / name)
        fsync(Path(folder))
    if path.exists():
        _swap(temporary, path)
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        os.rename(temporary, path)
    fsync(path.parent)


def heal(path: Path) -> None:
    """Puts back a folder that a kill caught between the two renames of a replacement."""
    for old in sorted(path.parent.glob(f".{path.name}.old-*")):
        if not path.exists():
            os.rename(old, path)
        else:
            shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what killed writers of `path` left behind."""
    for leftover in path.parent.glob(f".{path.name}.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                leftover.unlink()


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


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _swap(new: Path, path: Path) -> None:
    """Exchanges two folders' names; where the system cannot, the old one goes aside first (see `heal`)."""
    with suppress(AttributeError, OSError):
        at_here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        if rename(at_here, os.fsencode(new), at_here, os.fsencode(path), exchange) == 0:
            return
    aside = path.parent / f".{path.name}.old-{uuid.uuid4().hex[:8]}"
    os.rename(path, aside)
    os.rename(new, path)
    shutil.rmtree(aside, ignore_errors=True)
