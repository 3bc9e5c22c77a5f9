from align.evaluation import preference
from align.evaluation.table import MAX_ROWS, AccuracyRow
from align.report.accuracy import accuracy_table, calibration_sentence, reliability_rows
from align.runs.run_files import StageFiles
from data_formats.records import Comparison, Message


def compared(at, **more):
    sides = ("好" * 40, "b") if at % 4 else ("a", "b" * 300)
    return Comparison((Message("user", f"q{at}"),), *sides, **more)


def test_page_and_summary_agree_on_every_part():
    pairs = [compared(at, grade=at / 100, source="s", category=f"c{at % 2}", tags=("t",)) for at in range(60)]
    scores = [float(at % 3) for at in range(60)], [1.0] * 60
    summary = preference.evaluate(pairs, *scores, train=[Comparison((), "a", "bbb")])
    lines = preference.lines(pairs, *scores)["eval.jsonl"]
    table = accuracy_table(StageFiles("rm", summary, evals=lines))
    assert table == accuracy_table(StageFiles("rm", summary))
    assert [row.kind for row in table if row.kind] == [
        *("source", "grade", "category", "tag", "length gap"),
    ]
    # 20 of 60 score 2 against 1, 15 are shorter. Wilson: (1/3 + .03201 -+ 1.96 sqrt(.003704 + .000267)) / 1.06402
    assert table[0] == AccuracyRow("", "all pairs", "60", "33.3 %", "22.7 to 45.9 %", "25.0 %")
    grades = [row for row in table if " to " in row.part][:6]
    assert [row.part for row in grades][::5] == ["0 to 0.09", "0.5 to 0.59"] and {row.pairs for row in grades} == {"10"}


def test_of_many_parts_the_largest_are_shown():
    parts = {f"tag{at:02}": {"accuracy": 0.5, "pairs": at} for at in range(MAX_ROWS + 3)}
    table = accuracy_table(StageFiles("rm", {"accuracy": 0.5, "by_tag": parts}))
    assert [row.part for row in table][:2] == ["all pairs", "tag03"]
    assert table[-1].part == "… and 3 more, see summary.json"


def test_what_is_torn_is_left_out():
    torn = {"a": 3, "b": {"accuracy": "0.5"}, "c": {"accuracy": 2}, "d": {"accuracy": 0.5, "accuracy_low": "?"}}
    table = accuracy_table(StageFiles("rm", {"by_tag": torn, "by_grade": [1]}))
    assert table == [AccuracyRow("tag", "d", "", "50.0 %", "", "")]
    assert accuracy_table(StageFiles("rm")) == []


def test_calibration_in_words():
    summary = {"calibration_error": 0.125, "calibration_error_at_temperature": 0.05, "temperature": 1.5}
    old = calibration_sentence(StageFiles("rm", summary))
    assert "12.5 % with the scores as they are, 5.0 %" in old and "judged on the pairs that" in old and "1.5" in old
    rows = {"reliability_at_temperature": [{"stated": 0.75, "found": 0.5, "pairs": 8}]}
    assert "each half of the prompts" in calibration_sentence(StageFiles("rm", summary | rows))
    one = calibration_sentence(StageFiles("rm", summary | {"calibration_error_at_temperature": None}))
    assert one == "expected calibration error 12.5 % with the scores as they are."
    assert calibration_sentence(StageFiles("rm")) == ""


def test_reliability_rows_leave_out_what_is_torn():
    good = {"stated": 0.75, "found": 0.5, "pairs": 8}
    torn = [{"stated": 0.7}, None, good | {"found": 2}, good | {"pairs": 0}, good | {"stated": "0.7"}]
    assert reliability_rows(StageFiles("rm", {"reliability": [good, *torn]})) == [(0.75, 0.5, 8)]
    assert reliability_rows(StageFiles("rm", {"reliability": 3})) == []
