"""Numbers that a model gave to texts, kept on the disk: nothing is rated twice, and a kill loses at most a piece.

JSON lines, one a text: the key, made of the text and of what rates it, and the numbers. So another order of the rows,
more of them, or a second scorer in the same file are all right, and what an edited model says is not taken for what the
old one said. A text's numbers depend on no other text, so a piece needs no file of its own (`align.runtime.pieces`): it
is added in one go, and a torn line is passed over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from align.data.replies import PromptedReply
from align.runtime.files import append_json_lines
from align.runtime.json_files import number, objects, read_text

logger = logging.getLogger(__name__)

SCORES = "scores.jsonl"
PIECE = 256  # texts that are rated between two additions to the file
Numbers = tuple[float, ...] | None  # None: it cannot be told


class Kept:
    """What is known of replies, each with what it answers.

    Args:
        path: the file, made when the first piece is added; None: they are held in memory alone.
        made_with: what decides the numbers beside the text, as JSON: the model's files, limits of length.

    Raises:
        RunFileError: the file cannot be read as text.
    """

    def __init__(self, path: Path | None, made_with: Mapping[str, Any]):
        self.path = path
        self._salt = json.dumps(made_with, sort_keys=True).encode()
        self._known: dict[str, Numbers] = {}
        for row in objects(read_text(path))[0] if path else ():
            key, values = row.get("key"), row.get("numbers")
            if isinstance(key, str) and values is None and "numbers" in row:
                self._known[key] = None
            elif isinstance(key, str) and isinstance(values, list) and None not in map(number, values):
                self._known[key] = tuple(map(float, values))

    def numbers(
        self, replies: Sequence[PromptedReply], rate: Callable[[Sequence[PromptedReply]], Sequence[Numbers]]
    ) -> list[Numbers]:
        """The numbers of each reply; `rate` is asked piece by piece about those that are not known.

        Raises:
            StorageError: a piece cannot be kept.
        """
        keys = [self._key(one) for one in replies]
        missing = {key: one for key, one in zip(keys, replies, strict=True) if key not in self._known}
        asked = list(missing.items())
        for at in range(0, len(asked), PIECE):
            piece = asked[at : at + PIECE]
            found = rate([one for _, one in piece])
            rows = [{"key": key, "numbers": values} for (key, _), values in zip(piece, found, strict=True)]
            if self.path is not None:
                append_json_lines(self.path, rows)
            self._known |= {row["key"]: row["numbers"] for row in rows}
            if len(asked) > PIECE:
                logger.info("%d of %d replies are rated", min(at + PIECE, len(asked)), len(asked))
        return [self._known[key] for key in keys]

    def _key(self, reply: PromptedReply) -> str:
        """128 bits of everything in it, and of what rates it."""
        told = blake2b(repr((reply.prompt, reply.reply, reply.tools)).encode(), digest_size=16).digest()
        return blake2b(told, key=blake2b(self._salt).digest(), digest_size=16).hexdigest()


def kept_in(folder: Path | None, made_with: Mapping[str, Any]) -> Kept:
    """What is known in `scores.jsonl` of a folder, where several scorers keep their numbers side by side."""
    return Kept(None if folder is None else folder / SCORES, made_with)
