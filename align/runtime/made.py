"""What the files of a folder were made with, so that a second run makes anew what would be another one now, and nothing
else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align.runtime import files
from align.runtime.errors import StorageError
from align.runtime.json_files import Row, read_object
from align.runtime.terminal import say


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of settings (JSON) that are other ones now."""
    return [name for name in now if was.get(name) != now[name]]


def made_before(
    file: Path, summary: Path, made_with: Mapping[str, Any], *, damaged: str, refusal: Callable[[str], str]
) -> Row | None:
    """The summary of a file that is there already; None where it is not.

    Args:
        summary: where it lies; what the file was made with stands there under `made_with`.
        damaged: what to do where that cannot be read.
        refusal: the sentence where the file was made with other settings, of their names.

    Raises:
        StorageError: it was.
        RunFileError: the summary is damaged.
    """
    if not file.is_file():
        return None
    found = read_object(summary, damaged) or {}
    if other := differing(found.get("made_with", {}), json.loads(json.dumps(made_with))):
        raise StorageError(refusal(", ".join(other)))
    return found


class MadeWith:
    """The settings of files, kept in `settings.json` beside them.

    Raises:
        RunFileError: that file is damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "settings.json"
        self._known = read_object(self.file, f"remove {folder}, or name another one") or {}

    def require(self, file: Path, settings: dict[str, Any]) -> None:
        """Remove `file`, below the folder, and pieces of it, where it was made with other settings (JSON) than these,
        which are kept.

        Raises:
            StorageError: nothing can be written there.
        """
        key, wanted = file.relative_to(self.folder).as_posix(), json.loads(json.dumps(settings))
        if self._known.get(key) == wanted:
            return
        if file.exists():
            changed = ", ".join(sorted(differing(self._known.get(key, {}), wanted)))
            say(f"{file} is made anew, since this is not what it was made with: {changed}", file=sys.stderr)
        for former in (file, file.with_name(f"{file.name}.pieces")):
            files.remove(former)
        self._known[key] = wanted
        files.write_json(self.file, self._known)
