"""People as judge: replies that annotators ranked, looked up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reward.judges.protocol import Judgment, ReplyPair


class RankingsJudge:
    """Rankings of a file (`data_formats.rankings` says in which shapes): a judgment an annotator, no majority.

    A pair is looked up by its prompt and the texts of its replies; a ranking without texts, by the names of the models
    (`ReplyPair.models`). What nobody ranked has no judgment.

    Args:
        path: the file (CSV, TSV, JSON, JSON Lines or Parquet).
        name: default: the file's name without its ending.
        described: what follows "judged by"; default: "3 annotators of votes.csv".

    Attributes:
        models: whose replies are ranked, in the file's order.
        left_out: what was left out, with how many times ("no rank": 3).

    Raises:
        MissingFileError, DataError: no such file, or a row that cannot be read; names file, row and field.
    """

    models: tuple[str, ...]
    left_out: dict[str, int]

    def __init__(self, path: str | Path, *, name: str = "", described: str = ""):
        raise NotImplementedError

    def pairs(self, first: str, second: str) -> list[ReplyPair]:
        """A pair for every prompt on which somebody ranked both models, to compare them without asking any model."""
        raise NotImplementedError

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """A judgment an annotator who ranked both replies, in the file's order; ties in ranks are ties."""
        raise NotImplementedError
