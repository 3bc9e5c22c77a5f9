"""Datasets of the Hugging Face hub -> raw rows, through `datasets`.

Streaming (the default) reads shard by shard; it holds some ten MB of a JSONL shard, of a Parquet shard what Arrow reads
ahead (up to the shard itself, whatever the number of shards). Without streaming the dataset is downloaded once,
converted to Arrow files in the library's cache and memory-mapped from there. A local folder of data files takes the
same way. Datasets that need code of their own are refused by the library; none is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runtime.errors import AlignError, MissingFileError
from align.runtime.packages import require_package
from align.runtime.paths import typed_path
from align.runtime.secrets import hide
from align.runtime.terminal import shortened
from data_formats.errors import DataError, RowNumber
from data_formats.files import Lines

PREFIX = "hub:"
_SHOWN = 300  # characters of the library's own message


@dataclass(frozen=True, slots=True)
class HubDataset:
    """One split of a dataset on the hub, or of a local folder; `str()` of it is `hub:` and its name.

    Attributes:
        name: "org/name", or the path of a folder of data files.
        split: as `datasets` writes it; without streaming also a slice ("train[:1000]").
        config: the configuration (subset), None for the default one.
        revision: a branch, tag or commit; a commit pins the data.
        streaming: read while downloading instead of downloading first.
    """

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    streaming: bool = True

    def __str__(self) -> str:
        return PREFIX + self.name

    def rows(self) -> Iterator[tuple[RowNumber, Any]]:
        """The rows with their numbers, from 1; each has all columns of the dataset, null where it has no value.

        Raises:
            MissingFileError: there is no such dataset or folder, or it is not open to this user.
            DataError: the hub cannot be reached, there is no such split or configuration, or a shard is malformed.
        """
        number = 0
        try:
            for row in self._load():
                number += 1
                yield RowNumber(number), row
        except AlignError:
            raise
        except Exception as error:  # the library passes on those of httpx, fsspec, pyarrow, fastparquet, zipfile ...
            raise self._as_ours(error, number) from error

    def _load(self) -> Any:
        folder = typed_path(self.name)
        if self.name.startswith((".", "/", "~")) and not folder.is_dir():
            raise MissingFileError(f"{self}: no such folder; name a folder of data files or a hub id (org/name)")
        require_package(f"{self}: a dataset of the hub", "datasets")
        import datasets

        return datasets.load_dataset(
            str(folder) if folder.is_dir() else self.name,
            self.config,
            split=self.split,
            revision=self.revision,
            streaming=self.streaming,
        )

    def _as_ours(self, error: Exception, number: int) -> AlignError:
        """The library's error as one of ours; `number` rows had been read."""
        said = shortened(" ".join(hide(str(error.__cause__ or error), _tokens()).split()).rstrip("."), _SHOWN)
        said = said or type(error).__name__
        if number:
            return DataError(f"cannot be read on ({said})", path=str(self), line=RowNumber(number + 1))
        if isinstance(error, FileNotFoundError):
            return MissingFileError(
                f"{self}: no such dataset, or it is not open to you ({said}); check the name and revision, and log in "
                "with `hf auth login` where it is gated or private"
            )
        if isinstance(error, ValueError) and " split" in f" {said.lower()}":
            return DataError(f"there is no split '{self.split}' ({said})", path=str(self), field="hub_split")
        if isinstance(error, ValueError) and "BuilderConfig" in said:
            return DataError(f"there is no configuration '{self.config}' ({said})", path=str(self), field="hub_config")
        if isinstance(error, ValueError) and "Config name is missing" in said:
            return DataError(f"it has several configurations ({said})", path=str(self), field="hub_config")
        if isinstance(error, ConnectionError | TimeoutError):
            return DataError(
                f"the hub cannot be reached ({said}); check the network, unset HF_HUB_OFFLINE if it is set, or name a "
                "local folder of the files; what was downloaded without streaming is found again with HF_HUB_OFFLINE=1",
                path=str(self),
            )
        return DataError(f"cannot be loaded ({said})", path=str(self))


def _tokens() -> list[str]:
    """The hub's tokens of this environment, which its messages could quote."""
    return [token for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if (token := os.environ.get(name, "").strip())]


def as_source(source: str | Path | HubDataset | Lines) -> Path | HubDataset | Lines:
    """What to read: a string that starts with `hub:` is a dataset of the hub, any other a file."""
    if isinstance(source, HubDataset | Lines):
        return source
    if isinstance(source, str) and source.startswith(PREFIX):
        return HubDataset(source.removeprefix(PREFIX))
    return Path(source)
