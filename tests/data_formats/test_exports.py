"""Exports of Argilla and Label Studio: the plain row that was annotated, with what the annotators agree on."""

import json

import pytest

from data_formats import Comparison, DataError, Demonstration, Message, Prompt, Scored, read

FIELDS = {"prompt": "q", "response_1": "a", "response_2": "b"}
TASK = {"id": 7, "data": {"prompt": "q", "answer1": "a", "answer2": "b"}, "predictions": []}


@pytest.fixture
def result_of(tmp_path):
    def read_rows(rows, kind):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read(tmp_path / "rows.jsonl", kind)

    return read_rows


def record(question, *values, **rest):
    """A record of Argilla 2."""
    answers = [{"value": value, "user_id": str(at)} for at, value in enumerate(values)]
    about = {"id": "1", "metadata": {}, "suggestions": {question: {"value": "response_2"}}, "vectors": {}}
    return {"fields": FIELDS, "responses": {question: answers} if values else {}, "status": "completed"} | about | rest


def result(selected, **rest):
    return {
        "from_name": "comparison",
        "to_name": "answer1,answer2",
        "type": "pairwise",
        "value": {"selected": selected},
    } | rest


def task(*annotations, **rest):
    return TASK | {"annotations": [{"result": list(results)} | rest for results in annotations]}


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        (record("which", "response_1"), "a"),
        (record("which", "response_2", "response_1", "response_2"), "b"),  # most say so
        (record("preference", "first"), "a"),
        ({"fields": FIELDS, "responses": [{"status": "submitted", "values": {"which": {"value": "response_2"}}}]}, "b"),
        ({**FIELDS, "which": [{"value": "response_1", "status": "submitted"}], "which-suggestion": None}, "a"),
        (
            {
                **FIELDS,
                "which.responses": ["response_2", "response_1"],
                "which.responses.status": ["x"],
                "which.status": ["submitted", "draft"],
            },
            "b",
        ),
        (task([result("left")]), "a"),
        (task([result("right")], [result("right")], [result("left")]), "b"),
        (task([result("x", type="choices", value={"choices": ["answer2"]})]), "b"),
        (TASK["data"] | {"id": 1, "comparison": {"selected": "right"}, "annotation_id": 3, "lead_time": 1.5}, "b"),
        (TASK["data"] | {"id": 1, "choice": "answer1", "annotation_id": 3, "lead_time": 1.5}, "a"),
    ],
)
def test_which_of_two(result_of, row, chosen):
    (pair,) = result_of([row], Comparison).records
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "q"),), chosen, "b" if chosen == "a" else "a")


def test_what_is_not_annotated_or_disputed_is_dropped_and_counted(result_of):
    rows = [
        record("which"),
        record("which", "response_1", "response_2"),
        record("which", "response_1", status="discarded"),
        record("which", "tie"),
        record("which", "response_1"),
        task(),
        task([result("left")], was_cancelled=True),
    ]
    found = result_of(rows, Comparison)
    assert [pair.chosen for pair in found.records] == ["a"]
    assert found.report.dropped == {"not annotated": 4, "annotators disagree": 1, "tie": 1}
    assert (found.report.rows, found.report.used) == (7, 1)
    assert len(result_of(rows, Prompt).records) == 7  # its prompt can be asked all the same


def test_ratings_are_averaged_and_ranks_are_scores(result_of):
    rating = {"fields": {"prompt": "q", "response": "a"}, "responses": {"rating": [{"value": 4}, {"value": 5}]}}
    (one,) = result_of([rating], Scored).records
    assert [(reply.content, reply.score) for reply in one.replies] == [("a", 4.5)]
    ranks = [[{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}]]
    (one,) = result_of([record("order", *ranks)], Scored).records
    assert [(reply.content, reply.score) for reply in one.replies] == [("a", -2), ("b", -1)]


def test_a_text_that_somebody_wrote_is_the_answer(result_of):
    row = {"fields": {"instruction": "q"}, "responses": {"output": [{"value": "r"}]}}
    (one,) = result_of([row], Demonstration).records
    assert one.messages == (Message("user", "q"), Message("assistant", "r"))
    written = {"from_name": "output", "type": "textarea", "value": {"text": ["r"]}}
    (one,) = result_of([{"data": {"instruction": "q"}, "annotations": [{"result": [written]}]}], Demonstration).records
    assert one.messages[1].content == "r"


def test_what_is_not_read_is_named(result_of):
    boxes = [result("x", type="rectanglelabels", value={"x": 1})]
    with pytest.raises(
        DataError, match=r"line 2, field 'annotations\[0\]\.result': .* found 'rectanglelabels'; export"
    ):
        result_of([task([result("left")]), task(boxes)], Comparison)
    ranks = [{"value": "other", "rank": 1}]
    with pytest.raises(DataError, match=r"line 1, field 'order': .* there is no field 'other'; the fields are prompt"):
        result_of([record("order", ranks)], Scored)
