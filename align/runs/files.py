"""Writing files and folders so that a reader sees the old or the new one, whole, whatever happens in between.

Everything is written by `align.runtime.atomic` under a temporary name (`.NAME.tmp-…`). A kill leaves that at most,
which the next write of the same target removes, and `sweep` wherever a folder's owner starts again. Failures of the
storage (full disk, no permission, quota) become `StorageError`; what was there before is intact.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from align.runtime.atomic import atomic_file, fsync, is_temporary, remove, remove_leftovers, temporary
from data_formats.errors import AlignError, StorageError

# Libraries written in other languages wrap the system's error in their own; these words are all they leave of it.
# (safetensors: "I/O error: … (os error 28)"; torch.save: "[enforce fail at inline_container.cc…] unexpected pos", or,
# when only the last bytes do not fit, "basic_ios::clear: iostream error").
_TORCH_WORDS = ("inline_container", "iostream error")
_ASIDE = re.compile(r"\.(.+)\.old-\w{8}")
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
    with storage_errors(path), atomic_file(Path(path)) as file:
        file.write(text)


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

    To be called by whoever holds the folder alone (`align.runs.lock`): an unfinished write of another process goes too.
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
