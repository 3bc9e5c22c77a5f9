"""Who judges what, in which order, and what is kept of it."""

import pytest

from align.feedback.annotation import Annotation, AnnotationError, fit_to_show, shown_order
from align.feedback.items import new_item
from align.feedback.judgments import JudgmentError, append, judgment_of, load_judgments, load_rows
from align.runtime.errors import StorageError
from data_formats.records import Message, Prompt, ToolCall
from tests.align.feedback.annotation_case import item, items, said

ITEMS = items(200)
BY_ID = {one.id: one for one in ITEMS}


def own(annotation, name):
    """The items that are an annotator's, none judged yet."""
    return set(annotation._open(annotation.join(name))[0])


def test_the_overlap_goes_to_all_and_each_other_item_to_one(tmp_path):
    annotation = Annotation(ITEMS, tmp_path / "j.jsonl", 0.3)
    for name in ("anna", "ben", "cy"):
        annotation.join(name)
    mine = [own(annotation, name) for name in ("anna", "ben", "cy")]
    assert set.union(*mine) == set(BY_ID) and len(annotation.overlap) == 60
    assert mine[0] & mine[1] == mine[0] & mine[2] == mine[1] & mine[2] == annotation.overlap
    assert all(len(one) > 60 + 25 for one in mine)
    again = Annotation(ITEMS[::-1], tmp_path / "j.jsonl", 0.3)
    for name in ("cy", "ben", "anna"):
        again.join(name)
    assert [own(again, name) for name in ("anna", "ben", "cy")] == mine
    again.join("dora")
    assert all(own(again, name) < former for name, former in zip(("anna", "ben", "cy"), mine, strict=True))
    assert own(Annotation(ITEMS, tmp_path / "j.jsonl", 0), "anna") == set(BY_ID)


def test_who_has_judged_their_own_gets_what_others_left(tmp_path):
    annotation = Annotation(items(6), tmp_path / "j.jsonl", 0.5)
    for name in ("anna", "ben"):
        annotation.join(name)
    seen = []
    while (state := annotation.state("anna"))["item"]:
        seen.append(state["item"]["id"])
        annotation.keep(said(annotation.items[seen[-1]]))
    assert sorted(seen) == sorted(annotation.items) and state["done"] == state["total"] == 6
    left = annotation.state("ben")
    assert left["total"] == 3 and left["left_by_others"] == 0 and left["item"]["id"] in annotation.overlap


def test_the_order_shown_is_the_same_again_and_differs_by_annotator():
    orders = {name: [shown_order(one, name) for one in ITEMS] for name in ("anna", "ben")}
    assert orders["anna"] == [shown_order(one, "anna") for one in ITEMS] != orders["ben"]
    firsts = [order[0] for order in orders["anna"] + orders["ben"]]
    assert 150 < firsts.count("r0") < 250
    assert sum(a == b for a, b in zip(*orders.values(), strict=True)) in range(70, 130)


def test_kept_once_however_often_it_is_sent_and_going_on_where_it_ended(tmp_path):
    path = tmp_path / "j.jsonl"
    annotation = Annotation(ITEMS[:2], path, 1)
    row = said(ITEMS[0])
    first = annotation.keep(row)
    again = Annotation(ITEMS[:2], path, 1)
    for one in (annotation, again):
        assert one.keep(row | {"seconds": 9.0}) == first and len(load_rows(path)) == 1
        with pytest.raises(AnnotationError, match="another judgment"):
            one.keep(row | {"strength": "better"})
    assert again.state("anna")["item"]["id"] == ITEMS[1].id and again.state("anna")["done"] == 1
    undo = {"id": said(ITEMS[0])["id"], "undoes": row["id"], "annotator": "anna"}
    with pytest.raises(AnnotationError, match="latest"):
        again.keep(undo | {"annotator": "ben"})
    for _ in range(2):
        assert again.undone(again.keep(undo)) == first
    assert load_judgments(path) == [] and again.state("anna")["done"] == 0 and len(load_rows(path)) == 2
    again.keep(said(ITEMS[0], strength="better"))
    other = Annotation(ITEMS[1:2], path, 1)  # a file without the item
    assert other.state("anna")["latest"] is None
    with pytest.raises(AnnotationError, match="latest"):
        other.keep(undo | {"id": said(ITEMS[0])["id"], "undoes": load_judgments(path)[0].id})
    assert [one.strength for one in load_judgments(path)] == ["better"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"item": "none"}, AnnotationError),
        ({"annotator": "ben"}, AnnotationError),  # who sees this item the other way round
        ({"shown": ["r0", "r9"], "ranking": [["r0"], ["r9"]]}, AnnotationError),
        ({"ranking": [["r9"], ["r0"]]}, JudgmentError),
        ({"ranking": 3}, JudgmentError),
    ],
)
def test_what_was_not_shown_is_not_kept(tmp_path, changes, error):
    one = next(one for one in ITEMS if shown_order(one, "anna") != shown_order(one, "ben"))
    annotation = Annotation(ITEMS, tmp_path / "j.jsonl", 1)
    with pytest.raises(error):
        annotation.keep(said(one) | changes)
    for wrong in (3, None, []):
        with pytest.raises(JudgmentError):
            annotation.keep(wrong)
    assert not (tmp_path / "j.jsonl").exists()


def test_what_the_disk_has_not_does_not_count(tmp_path):
    annotation = Annotation(ITEMS[:1], tmp_path / "j.jsonl", 1)
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(StorageError):
        annotation.keep(said(ITEMS[0]))
    assert annotation.state("anna")["done"] == 0


def test_calls_of_a_conversation_are_shown(tmp_path):
    turns = (Message("user", "hi"), Message("assistant", "", tool_calls=(ToolCall("look", '{"at": 1}'),)))
    asked = new_item(Prompt((*turns, Message("tool", "7"), Message("user", "so?"))), item("q", "a", "b").replies)
    told = Annotation([asked], tmp_path / "j.jsonl", 1)
    state = told.state(told.join("anna"))
    assert [turn["content"] for turn in state["item"]["prompt"]] == ["hi", 'look({"at": 1})', "7", "so?"]


def test_a_name_written_otherwise_is_the_same_person(tmp_path):
    annotation = Annotation(ITEMS[:2], tmp_path / "j.jsonl", 1)
    assert annotation.join("José Müller") == "José Müller"
    for other in ("jose\u0301 mu\u0308ller", "JOSÉ MÜLLER", "José Müller"):
        assert annotation.join(other) == "José Müller"
    assert annotation.join("Jose Müller") == "Jose Müller"
    with pytest.raises(AnnotationError, match="is known as José Müller: reload the page"):
        annotation.keep(said(ITEMS[0], "josé müller"))
    annotation.keep(said(ITEMS[0], "José Müller"))
    again = Annotation(ITEMS[:2], tmp_path / "j.jsonl", 1)
    assert again.state(again.join("josé müller"))["done"] == 1
    (row,) = load_rows(tmp_path / "j.jsonl")
    for name in ("anna", "Anna"):  # two people of a file from elsewhere stay two
        append(tmp_path / "j.jsonl", judgment_of(row.as_row() | {"id": said(ITEMS[0])["id"], "annotator": name}))
    both = Annotation(ITEMS[:2], tmp_path / "j.jsonl", 1)
    assert [both.join(name) for name in ("Anna", "anna")] == ["Anna", "anna"]


def test_names_and_items_that_cannot_be_shown():
    for name in ("", " ", "a\nb", "x" * 61, None):
        with pytest.raises(AnnotationError, match="annotator"):
            Annotation([], "none.jsonl", 1).join(name)
    many = [item("q", *map(str, range(count))) for count in (1, 2, 9, 10)]
    assert fit_to_show(many) == (many[1:3], 2)
