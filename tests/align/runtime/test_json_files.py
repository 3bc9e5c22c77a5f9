"""JSON lines have one reader, which names the line; what a run left is read whole or told in one sentence."""

import pytest

from align.runtime.files import write_json_lines
from align.runtime.json_files import RunFileError, json_lines, objects, read_objects

LINES = ['{"a": 1}', "", "[1, 2]", "7", '{"a": 1},', '{"a": 1} {"b": 2}', '{"a": [', "[" * 100_000, '{"b": 2}']
WRONG = {5: "a comma stands behind", 6: "two values stand on one line", 7: "does not end on this line", 8: "too deeply"}


def test_lines_have_their_numbers_and_wrong_ones_are_refused_each_by_its_own():
    told = {}
    assert list(json_lines(LINES, told.__setitem__)) == [(1, {"a": 1}), (3, [1, 2]), (4, 7), (9, {"b": 2})]
    assert told.keys() == WRONG.keys() and all(WRONG[line] in told[line] for line in told)
    assert objects("\n".join(LINES)) == ([{"a": 1}, {"b": 2}], 6)


@pytest.mark.parametrize("first", ["[{}]", '[{"a": 1},', "[\n"])
def test_a_list_is_no_file_of_lines(first):
    told = {}
    list(json_lines([first, "{}"], told.__setitem__))
    assert "this is a JSON list" in told[1]


def test_what_is_written_is_read_and_the_first_wrong_line_is_named(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    write_json_lines(file, ({"n": number, "text": "模型\u2028"} for number in range(3)))
    assert read_objects(file, "") == [{"n": number, "text": "模型\u2028"} for number in range(3)]
    file.write_text(file.read_text() + '\n"torn')
    with pytest.raises(RunFileError, match=r"rows\.jsonl cannot be read \(line 5: not a JSON value .*\): remove it$"):
        read_objects(file, "remove it")
    file.write_text("{}\n3\n")
    with pytest.raises(
        RunFileError, match=r"rows\.jsonl cannot be read \(line 2: this is no JSON object\): remove it$"
    ):
        read_objects(file, "remove it")
    with pytest.raises(RunFileError, match=r"none cannot be read \(no such file\): remove it$"):
        read_objects(tmp_path / "none", "remove it")
