"""Answers that were paid for, kept on the disk: JSON lines, one added as each comes, by the key of its question.

A process that is killed leaves whole lines and at most one torn one, which is passed over and asked for again.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from align.runtime.files import append_json_lines
from align.runtime.json_files import number, objects, read_text


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What an endpoint said to one question.

    Attributes:
        text: empty where it said nothing.
        ended: why it ended, in the endpoint's word: "stop", "length".
        prompt_tokens, completion_tokens: as the endpoint counts them, 0 where it does not.
    """

    text: str
    ended: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """Answers by key; several threads may add to them.

    Args:
        path: the file, made when the first answer is added; None: they are held in memory alone.

    Raises:
        RunFileError: the file cannot be read as text.
    """

    def __init__(self, path: Path | None):
        self.path, self._lock = path, threading.Lock()
        self._known: dict[str, KeptAnswer] = {}
        rows, _ = objects(read_text(path)) if path else ([], 0)
        for row in rows:
            if isinstance(row.get("key"), str) and isinstance(row.get("text"), str):
                counts = [int(number(row.get(name)) or 0) for name in ("prompt_tokens", "completion_tokens")]
                self._known[row["key"]] = KeptAnswer(row["text"], str(row.get("ended", "")), *counts)

    def get(self, key: str) -> KeptAnswer | None:
        return self._known.get(key)

    def add(self, key: str, answer: KeptAnswer) -> None:
        """Keeps an answer, on the disk before anything else is done with it. Raises StorageError."""
        with self._lock:
            if self.path is not None:
                append_json_lines(self.path, [{"key": key, **asdict(answer)}])
            self._known[key] = answer
