"""`metrics.jsonl`: one JSON object a logged step, appended as the run goes.

A line is written in one piece. A process killed in the middle of one leaves half a line at the end, which reading
skips and the next run removes.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from align.runtime.files import storage_errors, write_json_lines
from align.runtime.json_files import number, objects

LOG = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines such as {"step": 10, "time": 1767225600.123, "loss": 0.5}.

    Args:
        path: the file; its folder is made when it is missing.
        enabled: False on the ranks that do not write.
    """

    def __init__(self, path: str | Path, enabled: bool = True):
        self.path, self.enabled = Path(path), enabled

    def append(self, line: dict[str, Any]) -> None:
        """Appends one line; adds "time" (seconds since 1970) when it is missing.

        Numbers of torch and numpy are taken as plain ones. JSON has no NaN: what is not finite is written as null.
        Raises StorageError.
        """
        if not self.enabled:
            return
        line = {key: plain(value) for key, value in line.items()}
        line.setdefault("time", round(time.time(), 3))
        head = {key: line.pop(key) for key in ("step", "time") if key in line}
        text = json.dumps({**head, **line}, ensure_ascii=False, allow_nan=False) + "\n"
        with storage_errors(self.path, "append to"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _append_whole(descriptor, text.encode())
            finally:
                os.close(descriptor)

    def keep_until(self, step: int, at_step: int | None = None) -> None:
        """Drops the lines of steps after `step`, and half lines: what a run that resumes at `step` will write again.

        Args:
            at_step: how many lines of `step` itself had been written when its checkpoint was; those after them (a last
                evaluation, say) will be written again too. None keeps them all.
        """
        if not self.enabled or not self.path.exists():
            return
        lines = self.read()
        at = [line for line in lines if line.get("step", 0) == step]
        kept = [line for line in lines if line.get("step", 0) < step] + at[:at_step]
        write_json_lines(self.path, kept)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines. Those that are no records of a step (edited by hand, say) are left out with a warning."""
        if not self.path.exists():
            return []
        with storage_errors(self.path, "read"):
            whole, _, half = self.path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        lines, strange = objects(whole)
        lines += objects(half)[0]  # a killed process may have left no more than a part of the last
        kept = [line for line in lines if number(line.get("step", 0)) is not None]
        if strange := strange + len(lines) - len(kept):
            LOG.warning("%s: %d lines are no records of a step and are left out", self.path, strange)
        return kept


def _append_whole(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # half a line of a killed process must not spoil this one
    if os.write(descriptor, data) != len(data):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, "No space left for a whole line")


def recorded(logs: dict[str, Any]) -> dict[str, Any]:
    """What of a trainer's log is kept: a run's lines do not tell which process evaluated for the first time."""
    return {name: value for name, value in logs.items() if not name.endswith("model_preparation_time")}


def plain(value: Any) -> Any:
    """Numbers of torch and numpy as Python's, and None for one that is not finite; of what is in a dict or list too."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
