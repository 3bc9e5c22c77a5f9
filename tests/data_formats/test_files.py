"""Containers and compression, whole and damaged."""

import gzip
import json

import pytest
import zstandard

from align.runtime.errors import MissingFileError, MissingPackageError
from data_formats.errors import DataError
from data_formats.files import ending, raw_rows, text_lines

ROWS = [{"a": 1}, {"a": "线\u2028"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("x.jsonl", LINES, [1, 2]),
        ("x.JSONL", LINES + "\n", [1, 2]),
        ("x.ndjson", LINES.replace("\n", "\r\n\r\n"), [1, 3]),
        ("x.json", json.dumps(ROWS, indent=2), [1, 2]),
        ("x.json", LINES, [1, 2]),
        ("x.jsonl", "\ufeff" + LINES, [1, 2]),
    ],
)
def test_text_containers(tmp_path, name, content, numbers):
    (tmp_path / name).write_bytes(content.encode())
    assert list(raw_rows(tmp_path / name)) == list(zip(numbers, ROWS, strict=True))


def test_json_of_one_object_is_one_row_and_lists_of_lists_are_rows(tmp_path):
    (tmp_path / "x.json").write_text('{\n "a": 1\n}')
    assert list(raw_rows(tmp_path / "x.json")) == [(1, {"a": 1})]
    (tmp_path / "x.json").write_text('["q"]\n["q", "r"]')
    assert list(raw_rows(tmp_path / "x.json")) == [(1, ["q"]), (2, ["q", "r"])]


def test_gzip(tmp_path):
    whole = gzip.compress(LINES.encode() * 1)
    (tmp_path / "x.jsonl.gz").write_bytes(whole)
    assert [row for _, row in raw_rows(tmp_path / "x.jsonl.gz")] == ROWS
    for damaged in (whole[:-9], b"not gzip", whole[:12] + b"\xff" * 20):
        (tmp_path / "x.jsonl.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.jsonl\.gz: the gzip file is damaged or cut short"):
            list(raw_rows(tmp_path / "x.jsonl.gz"))


def test_zstd(tmp_path):
    whole = zstandard.ZstdCompressor().compress(LINES.encode())
    (tmp_path / "x.jsonl.zst").write_bytes(whole)
    assert [row for _, row in raw_rows(tmp_path / "x.jsonl.zst")] == ROWS
    (tmp_path / "x.jsonl.zst").write_bytes(b"not zstd at all")
    with pytest.raises(DataError, match="the zstd file is damaged"):
        list(raw_rows(tmp_path / "x.jsonl.zst"))


def test_zstd_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "x.jsonl.zst").write_bytes(b"")
    with pytest.raises(MissingPackageError, match=r"\.zst: .* needs zstandard, .* pip install 'align-rlhf\[zst\]'"):
        list(raw_rows(tmp_path / "x.jsonl.zst"))


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    nested = [{"messages": [{"role": "user", "content": "q"}]}, {"messages": []}]
    pq.write_table(pa.Table.from_pylist(nested), tmp_path / "x.parquet")
    assert list(raw_rows(tmp_path / "x.parquet")) == [(1, nested[0]), (2, nested[1])]
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(raw_rows(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x\.jsonl, line 2: not a JSON value .*the line starts '\{\"a\":'"),
        ("x.json", b'[{"a": 1},\n{"a" 2}]', r"x\.json, line 2: not JSON"),
        ("x.json", b'{"a": 1}\noops', r"x\.json, line 2: not a JSON value"),
        ("x.jsonl", b'{"a": 1}\n\xff', r"x\.jsonl, line 2: not UTF-8 text \(byte 0xff\)"),
        ("x.xls", b"a,b", r"x\.xls: unknown ending \.xls; known are \.jsonl"),
        ("noending", b"", r"unknown ending \(none\)"),
    ],
)
def test_damage_is_located(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(raw_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "x.csv"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(MissingFileError, match=f"{name}: no such file; check the path and data_root"):
        list(raw_rows(tmp_path / name))


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DataError, match="this is a folder"):
        list(raw_rows(tmp_path / "d.jsonl"))


def test_endings_and_text(tmp_path):
    assert [ending(tmp_path / name) for name in ("a.jsonl.gz", "a.b.TXT", "a.gz", "a")] == [".jsonl", ".txt", "", ""]
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n二".encode())
    assert "".join(text_lines(tmp_path / "a.txt")) == "one\r\n二"
