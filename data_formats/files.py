"""Files -> raw rows with their line numbers. Compression and container are told by the name's endings.

`.jsonl`/`.ndjson`; `.json` (one list, an object of columns, or JSON Lines, which many files of that name are); `.csv`
and `.tsv`, see `delimited`; `.parquet`; each also as `.gz` or, where `zstandard` is installed, `.zst`. For a list and
for Parquet the number is that of the row, from 1.
`.xml` is a StackExchange dump, see `posts_xml`. JSON Lines are read line by line and Parquet batch by batch (a
compressed Parquet file is first unpacked into a temporary file); a `.json` file is held as a whole.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from data_formats import delimited
from data_formats.errors import AlignError, DataError, MissingFileError, RowNumber
from data_formats.posts_xml import post_rows

ROW_ENDINGS = (".jsonl", ".ndjson", ".json", *delimited.ENDINGS, ".parquet", ".xml")
TEXT_ENDINGS = (".txt", ".md")
COMPRESSED = (".gz", ".zst")
PARQUET_BATCH = 1024  # rows


def ending(path: Path) -> str:
    """The ending that tells the container, the compression's left out: ".jsonl" for x.jsonl.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed content as a file to read from.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is a folder, cannot be read, or its compression is damaged (also while it is read).
    """
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
            if compression == ".gz":
                file = stack.enter_context(gzip.open(file))
            elif compression == ".zst":
                zstandard = _zstandard(path)
                damaged = (zstandard.ZstdError, EOFError)
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                file = stack.enter_context(io.BufferedReader(reader))
            yield file
        except damaged as error:
            name = "gzip" if compression == ".gz" else "zstd"
            raise DataError(f"the {name} file is damaged or cut short ({error})", path=path) from error
        except OSError as error:
            if isinstance(error, AlignError):
                raise
            raise DataError(f"cannot be read ({error.strerror or error})", path=path) from error


def read_bytes(path: Path) -> bytes:
    """The decompressed content as a whole.

    Raises:
        MissingFileError, DataError: see `opened`.
    """
    with opened(path) as file:
        return file.read()


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            ".zst files need the package zstandard: pip install zstandard (the extra [zst])", path=path
        ) from error
    return zstandard


def read_text(path: Path) -> str:
    """The content as UTF-8 text, a byte-order mark removed, line ends as they are.

    Raises:
        DataError: it is not UTF-8; names the line.
    """
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"not UTF-8 text (byte {raw[error.start]:#04x})", path=path, line=line) from error


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = f"not a JSON value ({error}); the line starts {line.strip()[:40]!r}"
                raise DataError(problem, path=path, line=number) from error


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, one at a time; only line feeds end one (JSON strings may hold U+2028 and the like)."""
    with opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"not UTF-8 text (byte {raw[error.start]:#04x})", path=path, line=number) from error


def _posts(path: Path) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        yield from post_rows(file, path)


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except RecursionError as error:
            raise DataError("nested too deeply to be read", path=path) from error
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise DataError(f"not JSON ({error.msg})", path=path, line=error.lineno) from error
        except ValueError as error:  # a number of thousands of digits
            raise DataError(f"not JSON that can be read ({error})", path=path) from error
        else:
            yield from ((RowNumber(number), row) for number, row in enumerate(rows, start=1))
            return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        yield from _json_lines(text.split("\n"), path)
    else:
        yield from delimited.column_rows(rows) if delimited.is_columns(rows) else [(RowNumber(1), rows)]


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(".parquet files need the package pyarrow: pip install pyarrow", path=path) from error
    number = 0
    with opened(path) as file:
        try:
            with tempfile.TemporaryFile() as unpacked:  # Parquet is read from its end, which a compressed file has not
                if path.suffix.lower() in COMPRESSED:
                    shutil.copyfileobj(file, unpacked)
                    unpacked.seek(0)
                    file = unpacked
                for batch in pq.ParquetFile(file).iter_batches(batch_size=PARQUET_BATCH):
                    for row in batch.to_pylist():
                        number += 1
                        yield RowNumber(number), row
        except (pa.ArrowException, ValueError, OSError, OverflowError) as error:
            if isinstance(error, AlignError):
                raise
            raise DataError(f"not a readable Parquet file ({error})", path=path) from error


def raw_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file with their numbers, lazily.

    Raises:
        MissingFileError, DataError: see `read_bytes`; an unknown ending; a line that is not JSON.
    """
    kind = ending(path)
    if kind == ".parquet":
        return _parquet(path)
    if kind == ".json":
        return _json(path)
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(_lines(path), path)
    if kind == ".xml":
        return _posts(path)
    if kind in delimited.ENDINGS:
        return delimited.delimited_rows(_lines(path), path)
    known = ", ".join((*ROW_ENDINGS, *TEXT_ENDINGS))
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path and data_root")
    found = path.suffix or "(none)"
    raise DataError(f"unknown ending {found}; known are {known}, each also as .gz or .zst", path=path)
