from align.report.page import render
from align.report.parts import calibration, part_rows
from align.report.run import Run, StageFiles

SUMMARY = {
    "accuracy": 0.75,
    "accuracy_low": 0.5,
    "accuracy_high": 0.9,
    "pairs": 40,
    "longer": 0.525,
    "by_source": {"a.jsonl": {"accuracy": 0.8, "pairs": 30, "accuracy_low": 0.6, "accuracy_high": 0.9, "longer": 0.5}},
    "by_grade": {"1": {"accuracy": 0.5, "pairs": 10}, "2": "torn", "3": {"accuracy": 1.0, "pairs": 2}},
    "calibration_error": 0.125,
    "temperature": 2.0,
    "calibration_error_at_temperature": 0.03,
}
LINE = {"prompt": [{"role": "user", "content": "<b>why?</b>"}], "category": "maths", "tags": ["astray"], "grade": 2.0}
LINES = [
    LINE | {"chosen": "right", "rejected": "slightly wrong", "chosen_score": 0.0, "rejected_score": 0.5},
    LINE | {"chosen": "sound", "rejected": "worst of all", "chosen_score": 0.0, "rejected_score": 3.0},
    LINE | {"chosen": "good", "rejected": "bad", "chosen_score": 1.0, "rejected_score": 0.0},
]


def run_of(summary=SUMMARY, lines=()):
    stages = {name: StageFiles(name) for name in ("base", "sft", "pmp", "rm", "rejection", "ppo")}
    return Run("n", {}, stages | {"rm": StageFiles("rm", summary, evals=list(lines))}, {}, [])


def test_rows_by_part():
    rows = [
        (row.kind, row.name, row.pairs, row.accuracy, row.interval, row.longer) for row in part_rows(run_of(), "rm")
    ]
    assert rows == [
        ("", "all pairs", "40", "75.0 %", "50.0 % to 90.0 %", "52.5 %"),
        ("source", "a.jsonl", "30", "80.0 %", "60.0 % to 90.0 %", "50.0 %"),
        ("grade", "1", "10", "50.0 %", "", ""),
        ("", "3", "2", "100.0 %", "", ""),
    ]
    many = {"by_category": {f"c{at}": {"accuracy": 0.5, "pairs": at} for at in range(1, 21)}}
    assert [row.name for row in part_rows(run_of(many), "rm")] == [f"c{at}" for at in range(9, 21)]
    assert part_rows(run_of({}), "rm") == []


def test_calibration_in_words():
    words = (
        "rm: expected calibration error 12.5 %; 3.0 % at temperature 2.00, cross-fitted over two halves of the prompts."
    )
    assert calibration(run_of(), "rm") == words
    assert calibration(run_of({"calibration_error": "x"}), "rm") == ""


def test_the_page_shows_the_parts_and_the_worst_pairs():
    page = render(run_of(lines=LINES), set())
    assert "Accuracy of rm by part" in page and "a.jsonl" in page and "expected calibration error 12.5 %" in page
    worst = page[page.index("rm gets most wrong") : page.index("Held-out pairs as rm")]
    assert worst.index("worst of all") < worst.index("slightly wrong") and "good" not in worst
    assert "maths, grade 2, astray" in worst and "&lt;b&gt;why?" in worst
    assert "gets most wrong" not in render(run_of(lines=LINES[2:]), set())
