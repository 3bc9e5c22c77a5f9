"""Judgments are kept as they were said, a torn row is passed over, and what is undone or sent twice does not count."""

import uuid

import pytest

from align.feedback.judgments import (
    HumanJudgment,
    JudgmentBook,
    JudgmentError,
    Undo,
    adding_to,
    append,
    judgment_of,
    load_judgments,
    load_rows,
)
from align.runtime.lock import FolderInUseError


def row(**changes):
    whole = {"id": str(uuid.uuid4()), "item": "i", "annotator": "anna", "shown": ["r1", "r0"]}
    return whole | {"ranking": [["r0"], ["r1"]], "strength": "better", "seconds": 1.5} | changes


def test_what_is_appended_is_read_back_and_a_torn_row_is_passed_over(tmp_path):
    path = tmp_path / "new" / "judgments.jsonl"
    first, second = (judgment_of(row(item=item, comment="知\u202e識")) for item in "ab")
    append(path, first)
    whole = path.read_bytes()
    assert load_judgments(path) == [first] and load_judgments(tmp_path / "none") == []
    for cut in range(1, len(whole) - 1, 5):  # also in the middle of a character
        path.write_bytes(whole + whole.replace(b'"a"', b'"c"')[:cut])
        append(path, second)
        assert load_rows(path) == [first, second], cut
    path.write_bytes(whole.removesuffix(b"\n"))  # the row is whole, its line is not
    append(path, first)
    append(path, second)
    assert load_rows(path) == [first, second]


@pytest.mark.parametrize("damage", ["xx{row}", "[{row}]", "{row},", "{row}{row}", '{{"id": "a",}}', "5"])
def test_a_line_that_an_editor_damaged_is_told_with_its_number(tmp_path, damage):
    path = tmp_path / "judgments.jsonl"
    append(path, judgment_of(row()))
    whole = path.read_text().strip()
    path.write_text(f"{whole}\n\n" + damage.format(row=whole) + "\n")
    with pytest.raises(JudgmentError, match=r"line 3.*mend the line or take it out"):
        load_rows(path)


def test_marks_of_an_editor_and_of_a_crash_hide_no_judgment(tmp_path):
    path = tmp_path / "judgments.jsonl"
    first, second = (judgment_of(row(item=item)) for item in "ab")
    append(path, first)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\0" * 4096)
    append(path, second)
    assert load_rows(path) == [first, second]


def test_a_file_of_judgments_has_one_writer(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real" / "judgments.jsonl")
    with adding_to(tmp_path / "real" / "judgments.jsonl"):
        for name in ("real/judgments.jsonl", "link.jsonl"):
            with pytest.raises(FolderInUseError, match=r"adding to judgments\.jsonl"), adding_to(tmp_path / name):
                pass
        with adding_to(tmp_path / "real" / "others.jsonl"):
            pass


def test_the_latest_that_is_not_undone_counts():
    def counting(rows):
        return JudgmentBook(rows).counting()

    first, second, other = (
        judgment_of(row(annotator=name, strength=strength))
        for name, strength in (("anna", "better"), ("anna", "slightly"), ("ben", "better"))
    )
    undo = Undo(id=str(uuid.uuid4()), undoes=second.id, annotator="anna")
    assert counting([first, other, second]) == [other, second]
    assert counting([first, other, second, undo]) == [first, other]
    assert counting([undo, first, other, second]) == [first, other]  # files merged by clocks that were set back
    foreign = Undo(id=str(uuid.uuid4()), undoes=other.id, annotator="anna")
    assert counting([other, foreign]) == counting([foreign, other]) == [other]
    book = JudgmentBook([first, other, second, undo, first])
    assert book.latest("anna") is first and book.judged_by("i") == ["anna", "ben"] and len(book.rows) == 4
    assert [one.grade for one in (first, second)] == [3, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "1"}, "id: expected a UUID"),
        ({"annotator": " "}, "annotator"),
        ({"annotator": "a\u202eb"}, "annotator"),
        ({"shown": ["r0"]}, "shown"),
        ({"shown": ["r0", "r0"]}, "shown: a reply is named twice"),
        ({"ranking": [["r0"]]}, "every reply"),
        ({"ranking": [["r0"], ["r1"], []]}, "every reply"),
        ({"ranking": [], "strength": None}, "every reply"),
        ({"ranking": [["r0", "r1"]]}, "strength"),
        ({"strength": "much"}, "strength"),
        ({"all_bad": "no"}, "all_bad"),
        ({"unsafe": ["r2"]}, "unsafe"),
        ({"edited": {"of": "r1", "text": "x"}}, "best rank"),
        ({"edited": {"of": "r0", "text": ""}}, "edited.text"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": "3"}, "seconds"),
        ({"comment": "\ud800"}, "comment"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_judgment_is_refused_with_its_key(changes, says):
    with pytest.raises(JudgmentError, match=says):
        judgment_of(row(**changes))


def test_all_bad_needs_no_order_and_a_tie_no_strength(tmp_path):
    bad = judgment_of(row(ranking=[], strength=None, all_bad=True, edited={"of": "r1", "text": "right"}))
    tie = judgment_of(row(ranking=[["r1", "r0"]], strength=None))
    assert isinstance(bad, HumanJudgment) and bad.grade is tie.grade is None
    for wrong in (None, 3, [], {}, {"undoes": 3}):
        with pytest.raises(JudgmentError):
            judgment_of(wrong)
    path = tmp_path / "judgments.jsonl"
    path.write_text('{"id": 3}\n')
    with pytest.raises(JudgmentError, match=r"judgments\.jsonl, line 1: "):
        load_judgments(path)
