"""Files -> raw rows with their line numbers. Compression and container are told by the name's endings.

`.jsonl`/`.ndjson`; `.json` (one list, an object of columns, or JSON Lines, which many files of that name are); `.csv`
and `.tsv`, see `delimited`; `.parquet`; each also as `.gz` or, where `zstandard` is installed, `.zst`. For a list and
for Parquet the number is that of the row, from 1.
`.xml` is a StackExchange dump, see `posts_xml`.

Nothing is held as a whole: JSON Lines and lists are read row by row, Parquet batch by batch (a compressed Parquet file
is first unpacked into a temporary file). A row larger than the limit that every reader is given is an error, and so is
a compressed file that expands beyond all measure.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from align.runtime.errors import AlignError, MissingFileError
from align.runtime.json_files import json_lines
from align.runtime.packages import require_package
from align.runtime.paths import typed_path
from data_formats import delimited
from data_formats.errors import MEBIBYTE, MOST, DataError, RowNumber, TooLargeError
from data_formats.json_rows import is_lines, json_values
from data_formats.posts_xml import post_rows

ROW_ENDINGS = (".jsonl", ".ndjson", ".json", *delimited.ENDINGS, ".parquet", ".xml")
TEXT_ENDINGS = (".txt", ".md")
COMPRESSED = (".gz", ".zst")
PARQUET_BATCH = 64  # rows at most
EXPANSION = 200  # times the size of a compressed file; texts come to 3 to 20
EXPANDED = 256 * MEBIBYTE  # below which nobody counts


def ending(path: Path) -> str:
    """The ending that tells the container, the compression's left out: ".jsonl" for x.jsonl.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


class _Counted(io.RawIOBase):
    """What a compressed file expands to, which is counted while it is read."""

    def __init__(self, unpacked: Any, packed_bytes: int, path: Path):
        self.unpacked, self.packed_bytes, self.path, self.count = unpacked, packed_bytes, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.unpacked.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        if self.count > max(EXPANDED, EXPANSION * self.packed_bytes):
            problem = f"expands to more than {EXPANSION} times its size, as no text does; unpack it if you trust it"
            raise DataError(problem, path=self.path)
        return len(data)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed content as a file to read from.

    Raises:
        MissingFileError: there is no such file.
        PathError: there can be none.
        DataError: it is a folder, cannot be read, its compression is damaged, or it expands beyond all measure (also
            while it is read).
    """
    path = typed_path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path and data_root")
    if path.is_dir():
        raise DataError("this is a folder; name a file", path=path)
    compression = path.suffix.lower()
    damaged: tuple[type[Exception], ...] = ()
    if compression == ".gz":
        damaged = (EOFError, gzip.BadGzipFile, zlib.error)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            size = os.fstat(file.fileno()).st_size
            if compression == ".gz":
                file = stack.enter_context(io.BufferedReader(_Counted(gzip.GzipFile(fileobj=file), size, path)))
            elif compression == ".zst":
                zstandard = _zstandard(path)
                damaged = (zstandard.ZstdError, EOFError)
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                file = stack.enter_context(io.BufferedReader(_Counted(reader, size, path)))
            yield file
        except damaged as error:
            name = "gzip" if compression == ".gz" else "zstd"
            raise DataError(f"the {name} file is damaged or cut short ({error})", path=path) from error
        except OSError as error:
            if isinstance(error, AlignError):
                raise
            raise DataError(f"cannot be read ({error.strerror or error})", path=path) from error


def _zstandard(path: Path) -> Any:
    require_package(f"{path}: a .zst file", "zstandard")
    import zstandard

    return zstandard


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON Lines that are at hand, a batch of a file's."""

    lines: Iterable[str]

    def __str__(self) -> str:
        return "lines of a batch"

    def rows(self) -> Iterator[tuple[int, Any]]:
        """The rows with their numbers, from 1. Raises DataError: a line is not JSON."""

        def refuse(line: int, problem: str) -> None:
            raise DataError(problem, path=str(self), line=line)

        return json_lines(self.lines, refuse)


def text_lines(path: Path, most: int = MOST) -> Iterator[str]:
    """The lines of a text with their ends, one at a time, a byte-order mark removed; only line feeds end one (JSON
    strings may hold U+2028 and the like).

    Raises:
        TooLargeError: a line has more than `most` bytes.
        DataError: it is not UTF-8; names the line.
    """
    with opened(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, most + 1), b""), start=1):
            if len(raw) > most:
                raise TooLargeError(most, path=path, line=number)
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"not UTF-8 text (byte {raw[error.start]:#04x})", path=path, line=number) from error


def _posts(path: Path, most: int) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        yield from post_rows(file, path, most)


def _json_lines(path: Path, most: int) -> Iterator[tuple[int, Any]]:
    def refuse(line: int, problem: str) -> None:
        raise DataError(problem, path=path, line=line)

    return json_lines(text_lines(path, most), refuse)


def _json(path: Path, most: int) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        lines = is_lines(file)
    if lines:
        yield from _json_lines(path, most)
        return
    with opened(path) as file:
        yield from json_values(file, path, most)


def _parquet(path: Path, most: int) -> Iterator[tuple[int, Any]]:
    require_package(f"{path}: a .parquet file", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with opened(path) as file:
        try:
            with tempfile.TemporaryFile() as unpacked:  # Parquet is read from its end, which a compressed file has not
                if path.suffix.lower() in COMPRESSED:
                    shutil.copyfileobj(file, unpacked)
                    unpacked.seek(0)
                    file = unpacked
                table = pq.ParquetFile(file)
                _check_groups(table.metadata, path, most)
                for batch in table.iter_batches(batch_size=_batch_size(table.metadata)):
                    for part in [batch] if batch.nbytes <= most else (batch.slice(at, 1) for at in range(len(batch))):
                        if part.nbytes > most:
                            raise TooLargeError(most, path=path, line=RowNumber(number + 1))
                        for row in part.to_pylist():
                            number += 1
                            yield RowNumber(number), row
        except (pa.ArrowException, ValueError, OSError, OverflowError) as error:
            if isinstance(error, AlignError):
                raise
            raise DataError(f"not a readable Parquet file ({error})", path=path) from error


def _check_groups(metadata: Any, path: Path, most: int) -> None:
    """Refuse by its own account of itself a file whose rows are too large or whose columns expand beyond all measure.

    Arrow unpacks a page at a time, and a page may hold a single value of any size.
    """
    first = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if group.num_rows and group.total_byte_size // group.num_rows > most:
            raise TooLargeError(most, path=path, line=RowNumber(first))
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > max(EXPANDED, EXPANSION * column.total_compressed_size):
                problem = f"expands to more than {EXPANSION} times its size, as no text does"
                raise DataError(problem, path=path, field=column.path_in_schema)
        first += group.num_rows


def _batch_size(metadata: Any) -> int:
    """Rows that are unpacked at once. A value of a dictionary is stored once and may be every row's, so each row may
    come to all that the dictionaries hold."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = ([group.column(index) for index in range(group.num_columns)] for group in groups)
    held = (sum(one.total_uncompressed_size for one in group if one.has_dictionary_page) for group in columns)
    return min(PARQUET_BATCH, max(1, EXPANDED // max([1, *held])))


def raw_rows(path: Path, most: int = MOST) -> Iterator[tuple[int, Any]]:
    """The rows of a file with their numbers, lazily.

    Args:
        most: bytes that a row may have.

    Raises:
        MissingFileError, PathError, DataError: see `opened`; an unknown ending; a line that is not JSON.
        TooLargeError: a row has more.
    """
    kind = ending(path)
    if kind == ".parquet":
        return _parquet(path, most)
    if kind == ".json":
        return _json(path, most)
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(path, most)
    if kind == ".xml":
        return _posts(path, most)
    if kind in delimited.ENDINGS:
        return delimited.delimited_rows(text_lines(path, most), path)
    known = ", ".join((*ROW_ENDINGS, *TEXT_ENDINGS))
    if not typed_path(path).exists():
        raise MissingFileError(f"{path}: no such file; check the path and data_root")
    found = path.suffix or "(none)"
    raise DataError(f"unknown ending {found}; known are {known}, each also as .gz or .zst", path=path)
