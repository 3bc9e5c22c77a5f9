"""What a small file expands to is bounded: rows, lists, compression, Parquet pages, a dump's elements and its HTML."""

import gzip
import io
import json
import time
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_formats import (
    DataError,
    Demonstration,
    Document,
    TooLargeError,
    files,
    json_rows,
    read,
    stream,
)
from data_formats.documents import text_rows
from data_formats.files import raw_rows, text_lines
from data_formats.html import html_text
from data_formats.posts_xml import post_rows
from data_formats.reading import preference_kind

SMALL, LARGE = "x" * 50, "x" * 200
MOST = 100


def peak(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("x.jsonl", json.dumps(SMALL) + "\n" + json.dumps(LARGE), "line 2"),
        ("x.jsonl.gz", json.dumps(SMALL) + "\n" + json.dumps(LARGE), "line 2"),
        ("x.jsonl.zst", json.dumps(SMALL) + "\n" + json.dumps(LARGE), "line 2"),
        ("x.json", json.dumps([SMALL, SMALL, LARGE], indent=0), "line 4"),
        ("x.json", json.dumps([SMALL] * 40 + [LARGE]), "line 1"),
        ("x.json.gz", json.dumps([SMALL, {"a": [LARGE]}], indent=0), "line 3"),
        ("x.json", json.dumps({"a": LARGE}), "line 1"),
        ("x.json", json.dumps([SMALL]) + "\n" + json.dumps([LARGE]), "line 2"),
    ],
)
def test_a_row_has_a_limit(tmp_path, monkeypatch, name, content, place):
    raw = content.encode()
    if name.endswith("gz"):
        raw = gzip.compress(raw)
    elif name.endswith("zst"):
        raw = zstandard.ZstdCompressor().compress(raw)
    (tmp_path / name).write_bytes(raw)
    monkeypatch.setattr(json_rows, "_CHUNK", 16)
    with pytest.raises(TooLargeError) as refused:
        list(raw_rows(tmp_path / name, MOST))
    said = "larger than 9.53674e-05 MiB; if it is meant to be, raise max_row_mb (--max-row-mb)"
    assert str(refused.value) == f"{tmp_path / name}, {place}: {said}"
    assert len(list(raw_rows(tmp_path / name, 1000))) > 0


def test_the_limit_is_the_readers_key(tmp_path):
    row = json.dumps({"instruction": "q", "output": "x" * (1 << 20)})
    (tmp_path / "x.jsonl").write_text(row + "\n")
    with pytest.raises(TooLargeError, match="line 1: larger than 1 MiB"):
        read(tmp_path / "x.jsonl", Demonstration, max_row_mb=1)
    with pytest.raises(TooLargeError):
        preference_kind(tmp_path / "x.jsonl", max_row_mb=1)
    assert read(tmp_path / "x.jsonl", Demonstration, max_row_mb=2).report.records == 1


@pytest.mark.parametrize("split", ["none", "lines", "paragraphs"])
def test_documents_of_a_text_file_have_the_limit_too(tmp_path, split):
    (tmp_path / "x.txt").write_text(f"{SMALL}\n\n{SMALL}\n{SMALL}\n")
    if split == "lines":
        assert len(list(text_rows(text_lines(tmp_path / "x.txt", MOST), split))) == 4
        return
    with pytest.raises(TooLargeError, match=f"x.txt, line {1 if split == 'none' else 3}: larger than"):
        list(text_rows(text_lines(tmp_path / "x.txt", MOST), split, tmp_path / "x.txt", MOST))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.gz", ".txt.gz", ".xml.gz", ".parquet.gz", ".jsonl.zst"])
def test_expansion_is_counted_while_it_is_read(tmp_path, monkeypatch, ending):
    """Blank lines break no limit of a row, however many there are."""
    monkeypatch.setattr(files, "EXPANDED", 1 << 16)
    blank = b"\n" * (1 << 19)
    packed = zstandard.ZstdCompressor().compress(blank) if ending.endswith("zst") else gzip.compress(blank)
    (tmp_path / f"x{ending}").write_bytes(packed)
    with pytest.raises(DataError, match=rf"x{ending}: expands to more than 200 times its size"):
        read(tmp_path / f"x{ending}", Document)
    monkeypatch.setattr(files, "EXPANDED", 1 << 22)  # small enough for anybody
    try:
        report = read(tmp_path / f"x{ending}", Document).report
    except DataError as error:
        assert "expands" not in str(error)
    else:
        assert report.dropped == {"empty text": 1}


def test_a_line_of_a_bomb_is_never_held(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        for _ in range(64):
            file.write(b'"' + b"x" * (1 << 20))
    assert (tmp_path / "x.jsonl.gz").stat().st_size < 1 << 17

    def refused():
        with pytest.raises(TooLargeError, match="line 1"):
            list(raw_rows(tmp_path / "x.jsonl.gz", 1 << 20))

    assert peak(refused) < 4 << 20


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_streamed(tmp_path, ending, indent):
    text = json.dumps([{"text": f"{at} " + "x" * 1000} for at in range(3_000)], indent=indent).encode()
    (tmp_path / f"x{ending}").write_bytes(gzip.compress(text, 1) if ending.endswith("gz") else text)
    del text
    rows = stream(tmp_path / f"x{ending}", Document)
    counted = []
    assert peak(lambda: counted.append(sum(1 for _ in rows))) < 1_000_000
    assert counted == [3_000]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(JSON, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40), st.data())
def test_a_list_is_read_as_json_reads_it(tmp_path_factory, rows, indent, escaped, chunk, data):
    """Whatever the chunks are and whatever byte is wrong: the values of `json.loads`, or an error of a `DataError`."""
    path = Path(tmp_path_factory.getbasetemp()) / "list.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=escaped).encode("utf-8", "replace")
    whole, json_rows._CHUNK = json_rows._CHUNK, chunk
    try:
        path.write_bytes(text)
        assert repr([row for _, row in raw_rows(path)]) == repr(json.loads(text))
        at = data.draw(st.integers(0, len(text)))
        broken = text[:at] + data.draw(st.sampled_from([b"", b"}", b",", b'"', b"\xff", b"]"])) + text[at + 1 :]
        path.write_bytes(broken)
        try:
            found = [row for _, row in raw_rows(path)]
        except DataError as error:
            with pytest.raises(ValueError):
                json.loads(broken.decode("utf-8-sig"))
            assert error.line is not None
        else:
            assert json_rows.is_lines(io.BytesIO(broken)) or repr(found) == repr(json.loads(broken))
    finally:
        json_rows._CHUNK = whole


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"a": 1},\n{"a": 2},\n]', "line 3: not JSON (a comma stands between row 2 and the ']' that ends the list)"),
        ('[{"a": 1},\n{"a": 2,}]', "line 2: not JSON (a comma stands before the '}' that closes it)"),
        ('[{"a": 1}\n{"a": 2}]', "line 2: not JSON (after row 1 of the list ',' or ']' must follow, but found '{')"),
        ('[{"a": 1},\n{"a": "', "line 2: not JSON (Unterminated string starting at"),
        ('[{"a": 1}\n\n', "line 3: not JSON (after row 1 of the list ',' or ']' must follow, but the file ends)"),
        ('{\n"a": 1\n}\n{\n"a": 2\n}', "line 4: two JSON objects stand in a row, of which the second begins here"),
        ("[1,\n2]\n[3]", "line 3: two JSON values stand in a row"),
        ("[\n1]\noops", "line 3: two JSON values stand in a row"),
        ('{"a": 1}{"a": 2}', "line 1: two JSON objects stand in a row"),
        (
            '{"a": 1}\n{"a": 2}{"a": 3}',
            "line 2: not a JSON value (two values stand on one line, the second from column 9)",
        ),
        ("[" * 100_000, "line 1: nested too deeply to be read"),
        ("[" + "9" * 5000 + "]", "line 1: not JSON that can be read (Exceeds the limit"),
        ("[1,\n\xff]", "line 2: not UTF-8 text (byte 0xff)"),
    ],
)
def test_slips_in_json_are_named_with_their_line(tmp_path, content, problem):
    (tmp_path / "x.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as refused:
        list(raw_rows(tmp_path / "x.json"))
    assert str(refused.value).startswith(f"{tmp_path / 'x.json'}, {problem}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[\n{"a": 1}\n]', "line 1: this is a JSON list, not JSON Lines: give the file a name that ends in .json"),
        ('\n[{"a": 1},\n{"a": 2}]', "line 2: this is a JSON list, not JSON Lines"),
        ('{"a": 1},\n{"a": 2}', "line 1: not a JSON value (a comma stands behind the value, as in a list; JSON Lines"),
        (
            '{\n"a": 1\n}',
            "line 1: not a JSON value (Expecting property name enclosed in double quotes: it does not end",
        ),
        ('{"a": 1} {"a": 2}', "line 1: not a JSON value (two values stand on one line, the second from column 10)"),
        ('{"a": [1,]}', "line 1: not a JSON value (a comma stands before the ']' that closes it); the line starts '{"),
    ],
)
def test_slips_in_json_lines_are_named_with_their_line(tmp_path, content, problem):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError) as refused:
        list(raw_rows(tmp_path / "x.jsonl"))
    assert str(refused.value).startswith(f"{tmp_path / 'x.jsonl'}, {problem}")


def test_a_list_on_one_line_is_told_from_a_row(tmp_path):
    (tmp_path / "x.jsonl").write_text('[{"text": "a"}, {"text": "b"}]\n')
    with pytest.raises(DataError, match=r"line 1: this is a JSON list, not JSON Lines: give the file a name that ends"):
        read(tmp_path / "x.jsonl", Document)


def test_parquet_rows_have_the_limit(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    texts = [f"{at} {SMALL}" for at in range(200)]
    pq.write_table(pa.table({"text": [*texts[:150], "x" * 100_000, *texts[150:]]}), path)
    with pytest.raises(TooLargeError, match="row 151: larger than"):
        list(raw_rows(path, 10_000))
    assert len(list(raw_rows(path, 200_000))) == 201
    repeated = pa.table({"text": pa.array(["x" * 5000] * 300).dictionary_encode()})  # one value in the file
    pq.write_table(repeated, path)
    assert len(list(raw_rows(path, 10_000))) == 300


def test_parquet_that_expands_is_refused_by_its_own_account(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(files, "EXPANDED", 1 << 20)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1], "text": ["x" * (8 << 20)]}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(TooLargeError, match="row 1: larger than"):
        list(raw_rows(path, 1 << 20))
    with pytest.raises(DataError, match="field 'text': expands to more than 200 times"):
        list(raw_rows(path))


def test_an_element_of_a_dump_has_the_limit():
    row = b'<posts><row Id="1" PostTypeId="1" Title="t" Body="' + b"x" * (1 << 20) + b'"/></posts>'
    path = Path("Posts.xml")
    with pytest.raises(TooLargeError, match=r"Posts\.xml, line 1: larger than"):
        list(post_rows(io.BytesIO(row), path, 1 << 18))
    assert len(list(post_rows(io.BytesIO(row), path, 1 << 21))) == 1
    bomb = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><posts><row Body="&b;"/></posts>'
    with pytest.raises(DataError, match="document type declarations are refused"):
        list(post_rows(io.BytesIO(bomb), path))


UNITS = [
    "<a",
    "<!--",
    '<a x="',
    "<a x='>",
    "</",
    "<!",
    "<?",
    "<a =\"'>",
    "&#9",
    "&",
    "< ",
    "<a \n",
    "=  ",
    "<br/",
    "<a ='><b =\">",
]


@pytest.mark.parametrize("unit", UNITS)
def test_html_is_read_in_linear_time(unit):
    """html.parser takes 12 s over 8,000 of the third, and four times as long over twice as many."""
    for tail in ("", ">", "-->"):
        began = time.process_time()
        html_text(unit * 40_000 + tail)
        assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a</p>\n<p>b</p>", "a\n\nb"),
        ("<ul><li>a</li><li>b</li></ul>c", "- a\n\n- b\n\nc"),
        ("<a href='x>y' title=\"it's\">q</a> it's <b>z</b>", "q it's z"),
        ("<a href=it's>x</a> and it's <b>z</b>", "x and it's z"),
        ("a < b &amp;&lt; c <3", "a < b &< c <3"),
        ("x<!-- <p> -->y<?php ?>z<!doctype html>t</ >u", "xyztu"),
        ("a<!-- b", "a<!-- b"),
        ('<a href="x', '<a href="x'),
        ("a <b", "a <b"),
        ("&#65;&#x41;&#99999999999;&#" + "9" * 5000 + ";", "AA\ufffd\ufffd"),
    ],
)
def test_html_becomes_text(html, text):
    assert html_text(html) == text


def test_a_parquet_dictionary_whose_one_value_is_every_rows_is_unpacked_a_few_rows_at_a_time(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, size, rows = tmp_path / "x.parquet", 1 << 20, 64
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * size]))
    pq.write_table(pa.table({"text": values}), path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 4000
    monkeypatch.setattr(files, "EXPANDED", 4 * size)
    lengths = []
    assert peak(lambda: lengths.extend(len(row["text"]) for _, row in raw_rows(path))) < 12 * size
    assert lengths == [size] * rows
    monkeypatch.setattr(files, "EXPANDED", 256 * size)
    assert peak(lambda: sum(1 for _ in raw_rows(path))) >= rows * size
