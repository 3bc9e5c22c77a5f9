"""Documents from rows, and how text files are cut."""

from collections import Counter

import pytest

from data_formats.documents import parse_text, text_rows
from data_formats.errors import DataError
from data_formats.formats import Dropped
from data_formats.records import Document


def test_text_rows_are_kept_as_they_are():
    assert parse_text({"text": " a\n", "source": "w"}, Counter()) == Document(" a\n", "w")
    with pytest.raises(Dropped, match="empty text"):
        parse_text({"text": "\n"}, Counter())


def test_text_is_cut_only_where_that_is_asked_for():
    text = ["a\r\n", "b\n", "\n", "\n", "c\n"]
    assert list(text_rows(text, "none")) == [(1, {"text": "a\r\nb\n\n\nc"})]
    lines = [(line, row["text"]) for line, row in text_rows(text, "lines")]
    assert lines == list(enumerate(["a", "b", "", "", "c"], 1))
    assert list(text_rows(text, "paragraphs")) == [(1, {"text": "a\nb"}), (5, {"text": "c"})]
    assert list(text_rows([], "none")) == list(text_rows([], "lines")) == []
    with pytest.raises(DataError, match="unknown split 'line'; a text file has none, lines, paragraphs"):
        text_rows(text, "line")
