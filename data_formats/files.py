"""Files -> raw rows with their line numbers. Compression and container are told by the name's endings.

`.jsonl`/`.ndjson`; `.json` (one list, or JSON Lines, which many files of that name are); `.parquet`; each also as `.gz`
or, where `zstandard` is installed, `.zst`. For a list and for Parquet the number is that of the row, from 1.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_formats.errors import DataError, MissingFileError, RowNumber

ROW_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet")
TEXT_ENDINGS = (".txt", ".md")
COMPRESSED = (".gz", ".zst")


def ending(path: Path) -> str:
    """The ending that tells the container, the compression's left out: ".jsonl" for x.jsonl.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def read_bytes(path: Path) -> bytes:
    """The decompressed content.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is a folder, cannot be read, or its compression is damaged.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path and data_root")
    if path.is_dir():
        raise DataError("this is a folder; name a file", path=path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=path) from error
    if path.suffix.lower() == ".gz":
        try:
            return gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"the gzip file is damaged or cut short ({error})", path=path) from error
    return _unzstd(raw, path) if path.suffix.lower() == ".zst" else raw


def _unzstd(raw: bytes, path: Path) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            ".zst files need the package zstandard: pip install zstandard (the extra [zst])", path=path
        ) from error
    try:
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True).read()
    except zstandard.ZstdError as error:
        raise DataError(f"the zstd file is damaged or cut short ({error})", path=path) from error


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


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and the like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = f"not a JSON value ({error}); the line starts {line.strip()[:40]!r}"
                raise DataError(problem, path=path, line=number) from error


def _json(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except RecursionError as error:
            raise DataError("nested too deeply to be read", path=path) from error
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise DataError(f"not JSON ({error.msg})", path=path, line=error.lineno) from error
        else:
            yield from ((RowNumber(number), row) for number, row in enumerate(rows, start=1))
            return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        yield from _json_lines(text, path)
    else:
        yield RowNumber(1), rows


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(".parquet files need the package pyarrow: pip install pyarrow", path=path) from error
    raw = read_bytes(path)
    number = 0
    try:
        for batch in pq.ParquetFile(io.BytesIO(raw)).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield RowNumber(number), row
    except pa.ArrowException as error:
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
        return _json(read_text(path), path)
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(read_text(path), path)
    known = ", ".join((*ROW_ENDINGS, *TEXT_ENDINGS))
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path and data_root")
    found = path.suffix or "(none)"
    raise DataError(f"unknown ending {found}; known are {known}, each also as .gz or .zst", path=path)
