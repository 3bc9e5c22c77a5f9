"""Memory stays flat while a large file is read, and no bytes crash a reader."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_formats import AlignError, DataError, Document, MissingFileError, Record, read, stream

LIMIT = 2_000_000  # bytes
ENDINGS = (
    ".jsonl",
    ".json",
    ".xml",
    ".txt",
    ".md",
    ".parquet",
    ".jsonl.gz",
    ".jsonl.zst",
    ".xml.gz",
    ".parquet.zst",
    ".x",
)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl", ".jsonl.zst"])
def test_memory_is_flat(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    text = "".join(json.dumps({"text": f"{at} " + "x" * 1000}) + "\n" for at in range(20_500)).encode()
    assert len(text) > 10 * LIMIT
    if ending.endswith("zst"):
        text = zstandard.ZstdCompressor().compress(text)
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    del text
    records = stream(path, Document)
    tracemalloc.start()
    count = sum(1 for _ in records)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == records.report.records == 20_500
    assert peak < LIMIT


NAMES = "messages conversations role from content value type text tools tool_calls label prompt chosen rejected"
MORE = "question answers instances instruction output replies steps score completions completion turns history"
FIELDS = st.sampled_from([*NAMES.split(), *MORE.split(), "posts", "left_out", "winner", "passages", "tags", "system"])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=200),
        JSON.map(lambda row: json.dumps(row).encode()),
        st.dictionaries(FIELDS, JSON, min_size=2, max_size=8).map(lambda row: json.dumps(row).encode()),
        st.text(max_size=50).map(
            lambda text: f'<posts><row PostTypeId="2" Score="{text}"/></posts>'.encode("utf-8", "replace")
        ),
    ),
    st.sampled_from(ENDINGS),
    st.booleans(),
)
def test_no_bytes_crash_a_reader(tmp_path_factory, content, ending, packed):
    path = Path(tmp_path_factory.getbasetemp()) / f"fuzz{ending}"
    path.write_bytes(gzip.compress(content) if packed and ending.endswith(".gz") else content)
    for kind in Record.__args__:
        try:
            report = read(path, kind).report
        except AlignError as error:
            assert isinstance(error, DataError | MissingFileError) and str(path) in str(error)
        else:
            assert report.rows == report.used + sum(report.dropped.values())
