"""Documents from rows, and how text files are cut."""

from collections import Counter

import pytest

from data_formats.documents import one_document_a_line, parse_text
from data_formats.formats import Dropped
from data_formats.records import Document


def test_text_rows_are_kept_as_they_are():
    assert parse_text({"text": " a\n", "source": "w"}, Counter()) == Document(" a\n", "w")
    with pytest.raises(Dropped, match="empty text"):
        parse_text({"text": "\n"}, Counter())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["x" * 500, "", "y" * 500], True),
        (["x" * 499, "y" * 499], False),
        (["x" * 72] * 3 + ["y" * 9000], False),
        (["x" * 9000], True),
        ([], False),
    ],
)
def test_long_lines_are_articles(lines, expected):
    assert one_document_a_line(lines) is expected
