"""The page of formats is that of the formats there are."""

from pathlib import Path

from data_formats.detection import FORMATS
from data_formats.table import markdown

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == markdown(), "python -m data_formats.table > docs/formats.md"


def test_every_format_has_a_row_that_says_what_it_holds():
    rows = [line.split(" | ") for line in markdown().splitlines() if line.startswith("| ")][1:]
    assert {row[0].removeprefix("| ") for row in rows} == {known.name for known in FORMATS}
    assert all(len(row) == 4 and len(row[3]) > 10 for row in rows)
    for known in FORMATS:
        (row,) = [row for row in rows if row[0] == f"| {known.name}"]
        assert known.kind.__name__ in row[1].split(", ")
