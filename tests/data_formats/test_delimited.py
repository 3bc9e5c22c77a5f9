"""CSV, TSV and tables by columns."""

import gzip

import pytest

from data_formats import Comparison, DataError, Demonstration, EmptyDatasetError, Prompt, Scored, delimited, read


def texts(result):
    return [[turn.content for turn in one.messages] for one in result.records]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", 'instruction,output\r\n"a, ""b""","line\r\nbreak"\r\n\r\nc,d\r\n'),
        ("x.tsv", 'instruction\toutput\n"a, ""b"""\t"line\r\nbreak"\nc\td'),
        (
            "x.CSV",
            '\ufeffinstruction;output\n"a, ""b""";"line\r\nbreak"\nc;d\n',
        ),  # as spreadsheets of other countries write
        ("x.csv.gz", 'instruction,output\n"a, ""b""","line\r\nbreak"\nc,d\n'),
    ],
)
def test_rows(tmp_path, name, content):
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert texts(read(tmp_path / name, Demonstration)) == [['a, "b"', "line\r\nbreak"], ["c", "d"]]


def test_json_in_cells_is_read_where_it_is_no_text(tmp_path):
    turns = '[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", ""content"": ""r""}]'
    (tmp_path / "x.csv").write_text(f'messages,category\n"{turns}",c\n')
    assert texts(read(tmp_path / "x.csv", Demonstration)) == [["q", "r"]]
    (tmp_path / "x.csv").write_text('prompt,tests,answer\n"[1, 2]","[""a"", ""b""]",007\n"{x",{x,\n')
    first, second = read(tmp_path / "x.csv", Prompt).records
    assert (first.messages[0].content, first.reference) == ("[1, 2]", "007")
    assert first.columns == {"tests": ["a", "b"], "answer": "007"}
    assert (second.messages[0].content, second.columns["tests"]) == ("{x", "{x")


def test_lists_as_pandas_writes_them(tmp_path):
    cell = "[{'role': 'user', 'content': \"it's\"}, {'role': 'assistant', 'content': 'r', 'tool_calls': None}]"
    quoted = '"' + cell.replace('"', '""') + '"'
    (tmp_path / "x.csv").write_text(f"messages,category\n{quoted},\"['a', 'b']\"\n")
    (one,) = read(tmp_path / "x.csv", Demonstration).records
    assert ([turn.content for turn in one.messages], one.category) == (["it's", "r"], "a, b")
    (tmp_path / "x.csv").write_text("prompt,tests\nq,['a'] or ['b']\n")
    assert read(tmp_path / "x.csv", Prompt).records[0].columns == {"tests": "['a'] or ['b']"}


def test_numbers_and_flags_are_text_in_tables(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,completion,label\nq,r,True\nq,s,0\n")
    assert [one.replies[0].score for one in read(tmp_path / "x.csv", Scored).records] == [1.0, 0.0]
    head = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    (tmp_path / "x.csv").write_text(head + '1,"[""q""]","[""a""]","[""b""]",0,1,0\n')
    assert [(one.chosen, one.rejected) for one in read(tmp_path / "x.csv", Comparison).records] == [("b", "a")]
    (tmp_path / "x.csv").write_text("prompt,response,helpfulness\nq,a,4\nq,b,2.5\n")
    assert [one.grade for one in read(tmp_path / "x.csv", Comparison).records] == [1.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer\nq,1\nq\n", "line 3: 1 cells where the header names 2"),
        (
            'prompt,answer\nq,1\n"q,1\nq,2\n',
            r"line 3: not a table that can be read \(.*\); a cell with quotation marks",
        ),
        ('prompt,answer\nq,"a"b\n', "line 2: not a table that can be read"),
        ("prompt,prompt\nq,q\n", "line 1: the header names 'prompt' more than once"),
        (",\nq,q\n", "line 1: the header names '' more than once"),
        ("\n\n", "line 1: the first line names no columns"),
        ("a,b\n1,2\n", "line 2: no prompt format has this shape; keys seen: a, b"),
        (b"prompt\n\xff\n", "line 2: not UTF-8"),
    ],
)
def test_damage_names_its_line(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.csv", Prompt)


def test_a_header_alone_is_an_empty_file(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,answer\n")
    with pytest.raises(EmptyDatasetError):
        read(tmp_path / "x.csv", Prompt)


def test_a_cell_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "LONGEST_CELL", 200_000)
    (tmp_path / "x.csv").write_text("prompt\n" + "x" * 190_000 + "\n" + "y" * 210_000 + "\n")
    with pytest.raises(DataError, match=r"line 3: .*field larger than field limit \(200000\)"):
        read(tmp_path / "x.csv", Prompt)


def test_a_table_by_columns_and_a_row_of_lists(tmp_path):
    (tmp_path / "x.json").write_text('{"prompt": ["q", "p"], "tests": [["a"], []], "answer": [4, null]}')
    first, second = read(tmp_path / "x.json", Prompt).records
    assert (first.reference, first.columns) == ("4", {"tests": ["a"], "answer": 4})
    assert (second.reference, second.columns) == (None, {"tests": [], "answer": None})
    (tmp_path / "x.json").write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}'
    )
    assert texts(read(tmp_path / "x.json", Demonstration)) == [["q", "r"]]
    (tmp_path / "x.json").write_text('{"prompt": ["q", "p"], "answer": ["a"]}')  # neither a table nor a row
    with pytest.raises(DataError, match=r"field 'prompt"):
        read(tmp_path / "x.json", Prompt)
