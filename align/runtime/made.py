"""What the files of a folder were made with, so that a second run makes anew what would be another one now, and nothing
else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from align.runtime import files
from align.runtime.json_files import read_object
from align.runtime.terminal import say


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
            changed = sorted(name for name in wanted if wanted[name] != self._known.get(key, {}).get(name))
            say(f"{file} is made anew, since this is not what it was made with: {', '.join(changed)}", file=sys.stderr)
        for former in (file, file.with_name(f"{file.name}.pieces")):
            files.remove(former)
        self._known[key] = wanted
        files.write_json(self.file, self._known)
