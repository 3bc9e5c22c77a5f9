"""Items go to other tools and what was said there comes back, as the tools write it."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from align import cli
from align.feedback.exchange import export_items, import_judgments
from align.feedback.item_files import read_items
from align.feedback.items import FeedbackItem, FeedbackReply
from align.feedback.judgments import load_judgments
from align.runtime.errors import StorageError
from align.runtime.files import write_json, write_json_lines
from data_formats.errors import DataError
from data_formats.records import Message
from tests.align.feedback.annotation_case import item

TWO, THREE = item("=1+1", "it is 2", "@SUM(3)"), item('say "hi",\nplease', "hi", "<b>hi</b>", "no")
ITEMS = [TWO, THREE]
USER = "9f6d3c1e-0000-4000-8000-000000000001"


def exported(tmp_path, tool):
    return {file.name: file for file in export_items(ITEMS, tool, tmp_path / tool, "be fair & <kind>")}


def reply(at, text):
    return FeedbackReply(f"r{at}", text)


def brief(judgments):
    return [(one.item, one.annotator, one.ranking, one.strength) for one in judgments]


def test_csv_goes_and_comes_back(tmp_path):
    file = exported(tmp_path, "csv")["replies.csv"]
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert rows[0]["prompt"] == "'=1+1" and "'@SUM(3)" in rows[0].values()  # no formulas
    assert rows[1]["prompt"] == 'say "hi",\nplease' and [rows[1][f"reply_{at}"] for at in (1, 2, 3)] == [
        one.reply for one in THREE.replies
    ]
    assert import_judgments(ITEMS, file) == ([], 2)
    rows[0] |= {"annotator": "anna", "ranking": "2>1", "strength": "better", "unsafe": "1", "edited": "it is two"}
    rows[1] |= {"annotator": "anna", "ranking": "reply_3", "strength": "", "edited": '{"ok": true}', "comment": "a, b"}
    rows += [rows[1] | {"annotator": "ben", "ranking": "1 = 2 = 3"}, rows[1] | {"annotator": "cy", "ranking": ""}]
    rows[-1] |= {"all_bad": "yes"}
    with file.open("w", newline="") as out:
        table = csv.DictWriter(out, rows[0], delimiter=";")  # as spreadsheets of other countries save it
        table.writeheader()
        table.writerows(rows)
    judgments, empty = import_judgments(ITEMS, file)
    assert empty == 0 and brief(judgments) == [
        (TWO.id, "anna", (("r1",), ("r0",)), "better"),
        (THREE.id, "anna", (("r2",), ("r0", "r1")), None),
        (THREE.id, "ben", (("r0", "r1", "r2"),), None),
        (THREE.id, "cy", (), None),
    ]
    assert judgments[0].unsafe == ("r0",) and judgments[0].edited.of == "r1" and judgments[1].comment == "a, b"
    assert judgments[1].edited.text == '{"ok": true}'
    assert judgments[3].all_bad


def test_what_a_spreadsheet_would_compute_or_rewrite_comes_back_as_it_was(tmp_path):
    texts = ["=1", "\n=1", "\uff1d1", "'=1", "- no", "007", "1e5", "1/2", "'tis", "12 apples"]
    on = FeedbackItem("12345678901e2345", (Message("user", "1-2"),), tuple(map(reply, range(len(texts)), texts)))
    (file,) = export_items([on], "csv", tmp_path)
    with file.open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    marked = [row[name] for name in ("item", "prompt", *(f"reply_{at + 1}" for at in range(len(texts))))]
    assert marked == [f"'{text}" for text in (on.id, "1-2", *texts[:8])] + texts[8:]
    for at in range(len(texts)):
        for edited, wanted in ((row[f"reply_{at + 1}"], None), (row[f"reply_{at + 1}"] + "!", texts[at] + "!")):
            said = {"annotator": "a", "ranking": str(at + 1), "strength": "Better", "edited": edited}
            write_json_lines(tmp_path / "x.jsonl", [row | said])
            (one,), _ = import_judgments([on], tmp_path / "x.jsonl")
            assert (one.edited and one.edited.text) == wanted


def test_what_was_filled_in_is_not_written_over(tmp_path):
    file = exported(tmp_path, "csv")["replies.csv"]
    exported(tmp_path, "csv")
    file.write_text(file.read_text() + "filled in\n")
    with pytest.raises(StorageError, match="somebody may have filled in"):
        exported(tmp_path, "csv")
    assert file.read_text().endswith("filled in\n")


def test_a_guideline_that_xml_cannot_hold(tmp_path):
    _, labels = export_items(ITEMS, "label-studio", tmp_path, 'be\x00 \x1bfair\ud800\ufffe\n"kind" <b>')
    header = ElementTree.fromstring(labels.read_text()).find("Header")
    assert header.get("value") == 'be fair\n"kind" <b>'


def test_argilla_goes_and_comes_back(tmp_path):
    files = exported(tmp_path, "argilla")
    records, settings = (json.loads(files[name].read_text()) for name in ("records.json", "settings.json"))
    assert settings["guidelines"] == "be fair & <kind>"
    assert [one["name"] for one in settings["fields"]] == ["prompt", "reply_1", "reply_2", "reply_3"]
    assert [one["required"] for one in settings["fields"]] == [True, True, True, False]
    kinds = {one["name"]: one["settings"]["type"] for one in settings["questions"]}
    assert kinds["ranking"] == "ranking" and kinds["strength"] == "label_selection"
    assert records[0]["id"] == TWO.id and records[0]["fields"].keys() == {"prompt", "reply_1", "reply_2"}
    said = {"ranking": ["reply_2", "reply_3", "reply_1"], "strength": "slightly", "unsafe": ["reply_1"], "comment": "c"}
    said["unsafe"].append("reply_3")  # which this item has not
    records[0]["responses"] = {name: [{"value": value, "user_id": USER}] for name, value in said.items()}
    ties = [{"value": f"reply_{at}", "rank": 1 if at < 3 else 2} for at in (1, 2, 3)]
    records[1]["responses"] = [
        {"user_id": USER, "status": "submitted", "values": {"ranking": {"value": ties}}},
        {"user_id": "other", "status": "discarded", "values": {"ranking": {"value": ties}}},
    ]
    write_json(files["records.json"], records)
    judgments, empty = import_judgments(ITEMS, files["records.json"])
    assert empty == 0 and brief(judgments) == [
        (TWO.id, USER, (("r1",), ("r0",)), "slightly"),
        (THREE.id, USER, (("r0", "r1"), ("r2",)), None),
    ]
    assert judgments[0].unsafe == ("r0",) and judgments[0].comment == "c"


def result(kind, name, value, to="prompt"):
    return {"id": "x", "type": kind, "from_name": name, "to_name": to, "origin": "manual", "value": value}


def test_label_studio_goes_and_comes_back(tmp_path):
    files = exported(tmp_path, "label-studio")
    tasks, labels = json.loads(files["tasks.json"].read_text()), ElementTree.fromstring(files["labels.xml"].read_text())
    assert [one.get("name") for one in labels.iter("Bucket")] == ["rank_1", "rank_2", "rank_3"]
    assert labels.find("Header").get("value") == "be fair & <kind>" and labels.find("Ranker").get("toName") == "replies"
    listed = tasks[1]["data"]["replies"]
    assert [one["body"] for one in listed] == [one.reply for one in THREE.replies]  # `html` would be live
    buckets = {"rank_1": ["reply_3"], "rank_2": ["reply_1", "reply_2"], "rank_3": [], "_": []}
    results = [
        result("ranker", "ranking", {"ranker": buckets}, "replies"),
        result("choices", "strength", {"choices": ["negligibly"]}),
        result("choices", "unsafe", {"choices": ["reply_1"]}),
        result("textarea", "edited", {"text": ["better still"]}),
    ]
    tasks[1] |= {"id": 7, "annotations": [{"completed_by": 3, "lead_time": 4.25, "result": results}]}
    pair = [result("pairwise", "p", {"selected": "right"})]
    simple = [result("ranker", "ranking", {"ranker": {"ranking": ["reply_1", "reply_2"]}})]
    bad = [result("choices", "all_bad", {"choices": ["all bad"]})]
    tasks[0]["annotations"] = [
        {"completed_by": {"id": 4, "email": "ben@example.org"}, "was_cancelled": False, "result": pair},
        {"completed_by": 5, "was_cancelled": True, "result": pair},
        {"completed_by": 6, "result": simple},
        {"completed_by": 7, "result": bad},
    ]
    write_json(files["tasks.json"], tasks)
    judgments, empty = import_judgments(ITEMS, files["tasks.json"])
    assert empty == 0 and brief(judgments) == [
        (TWO.id, "ben@example.org", (("r1",), ("r0",)), None),
        (TWO.id, "6", (("r0",), ("r1",)), None),
        (TWO.id, "7", (), None),
        (THREE.id, "3", (("r2",), ("r0", "r1")), "negligibly"),
    ]
    last = judgments[-1]
    assert (last.seconds, last.unsafe, last.edited.of, last.edited.text) == (4.25, ("r0",), "r2", "better still")


def argilla(id=TWO.id, user_id=USER, **said):
    answers = {"ranking": ["reply_1", "reply_2"]} | said
    responses = {name: [{"value": value, "user_id": user_id}] for name, value in answers.items()}
    return {"id": id, "fields": {"prompt": "p", "reply_1": "a", "reply_2": "b"}, "responses": responses}


def label_studio(changes=None, completed_by=1, ranker=None, **said):
    buckets = ranker or {"rank_1": ["reply_1"], "rank_2": ["reply_2"]}
    results = [result("ranker", "ranking", {"ranker": buckets})]
    for name, value in said.items():
        results.append(result("textarea" if "text" in value else "choices", name, value))
    return {"data": {"item": TWO.id}, "annotations": [{"completed_by": completed_by, "result": results}]} | (
        changes or {}
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "x"}, "line 1.*expected Argilla"),
        ({"item": "none", "annotator": "a", "ranking": "1"}, "not among the 2 items"),
        ({"item": TWO.id, "annotator": "", "ranking": "1"}, "annotator"),
        ({"item": TWO.id, "annotator": "a", "ranking": "best"}, "there is no 'reply_best'"),
        ({"item": TWO.id, "annotator": "a", "ranking": "1", "unsafe": "3"}, "there is no 'reply_3'"),
        ({"item": TWO.id, "annotator": "a", "ranking": "1 > 1"}, "every reply"),
        ({"item": TWO.id, "annotator": "a", "ranking": "1 > 2", "strength": "much"}, "strength"),
        ({"item": TWO.id, "annotator": "a", "ranking": "1", "all_bad": "maybe"}, "yes or no"),
        ({"data": {"item": TWO.id}, "annotations": [{"result": [{"type": "ranker", "value": {}}]}]}, "buckets"),
        ({"id": TWO.id, "fields": {}, "responses": {"ranking": 3}}, "list of objects"),
        (argilla(ranking=[{"rank": 1}]), "'ranking': expected names like reply_1, found 'None'"),
        (argilla(unsafe="reply_1"), "'unsafe': expected a list of texts"),
        (argilla(edited={"text": "x"}), "'edited': expected a text"),
        (argilla(id=[TWO.id]), "not among the 2 items"),
        (argilla(user_id=None), "'user_id': expected who annotated"),
        ({"id": TWO.id, "fields": {}, "responses": [{"values": ["x"]}]}, "'responses.values': expected an object"),
        (label_studio({"data": {"item": {}}}), "not among the 2 items"),
        (label_studio(completed_by=None), "'completed_by': expected who annotated"),
        (label_studio(ranker={"rank_1": 1}), "'rank_1': expected a list of texts"),
        (label_studio(strength={"choices": {"better": 1}}), "'strength': expected a list of texts"),
        (label_studio(all_bad={"choices": 1}), "'all_bad': expected a list of texts"),
        (label_studio(unsafe={"choices": "reply_1"}), "'unsafe': expected a list of texts"),
        (label_studio(comment={"text": [1]}), "'comment': expected a list of texts"),
        (label_studio(edited={"text": 1}), "'edited': expected a text"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_row(tmp_path, row, says):
    write_json_lines(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=says):
        import_judgments(ITEMS, tmp_path / "x.jsonl")


def test_the_command_exports_and_imports_each_judgment_once(tmp_path, capsys):
    file, out = tmp_path / "pairs.jsonl", tmp_path / "judgments.jsonl"
    rows = [{"prompt": f"q{at}", "chosen": "yes", "rejected": "no"} for at in range(3)]
    write_json_lines(file, [*rows, rows[0] | {"rejected": "perhaps"}])
    assert cli.main(["annotate", str(file), "--export", "csv"]) == 0
    filled = Path(capsys.readouterr().out.strip())
    assert filled == tmp_path / "pairs-csv" / "replies.csv"
    with filled.open(newline="") as lines:
        told = list(csv.DictReader(lines))
    assert [row["reply_3"] != "" for row in told] == [True, False, False]
    for row in told[:2]:
        row |= {"annotator": "anna", "ranking": "2", "strength": "better"}
    write_json_lines(filled.with_name("filled.jsonl"), told)
    for added in (2, 0):
        assert cli.main(["annotate", str(file), "--import", str(filled.with_name("filled.jsonl"))]) == 0
        assert f"{added} judgments added" in capsys.readouterr().out
    found = load_judgments(out)
    assert len(found) == 2 and all(one.time for one in found)
    assert {one.item for one in found} < {one.id for one in read_items(file)}


def test_items_of_any_file_with_several_replies(tmp_path):
    def read(*rows):
        write_json_lines(tmp_path / "x.jsonl", rows)
        return {
            one.prompt[-1].content: sorted(reply.reply for reply in one.replies)
            for one in read_items(tmp_path / "x.jsonl")
        }

    assert read(*(one.row() for one in ITEMS)) == {
        one.prompt[0].content: sorted(reply.reply for reply in one.replies) for one in ITEMS
    }
    assert [one.id for one in read_items(tmp_path / "x.jsonl")] == [one.id for one in ITEMS]
    sampled = [{"prompt": "q", "reply": text} for text in ("a", "b", "a")]
    assert read(*sampled, {"prompt": "p", "reply": "c"}) == {"q": ["a", "b"], "p": ["c"]}
    assert read({"prompt": "q", "completions": ["a", "b"]}) == {"q": ["a", "b"]}
    rated = [{"content": "a", "score": 1.0}, {"content": "b", "score": 0.0}]
    assert read({"prompt": "q", "replies": rated}) == {"q": ["a", "b"]}
    same = [[one.id for one in read_items(tmp_path / "x.jsonl")] for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(DataError):
        read({"text": "no replies"})
