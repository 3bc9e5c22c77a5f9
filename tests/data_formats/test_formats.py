"""Field helpers."""

from collections import Counter

import pytest

from data_formats.errors import DataError
from data_formats.formats import label, optional_number, optional_text, shown, source_of, text_field


def test_text_fields():
    row = {"a": "x", "b": None, "c": 4, "source": ["not", "ours"]}
    assert text_field(row, "a", Counter()) == "x"
    assert optional_text(row, "b", Counter()) == optional_text(row, "missing", Counter()) == ""
    assert (label(row, "c", Counter()), label(row, "b", Counter()), source_of(row)) == ("4", "", "")
    with pytest.raises(DataError, match="field 'z': the field is missing; found a, b, c, source"):
        text_field(row, "z", Counter())
    with pytest.raises(DataError, match="field 'c': expected a string, found int 4"):
        optional_text(row, "c", Counter())


@pytest.mark.parametrize("value", [True, "A", "1_0", "nan", float("nan"), float("inf"), [1]])
def test_numbers_are_finite_numbers(value):
    assert optional_number({"n": 2}, "n") == 2.0
    assert optional_number({"n": None}, "n") is None
    assert (optional_number({"n": " 4.5"}, "n"), optional_number({"n": ""}, "n")) == (4.5, None)  # CSV, exports
    with pytest.raises(DataError, match="field 'n': expected a finite number"):
        optional_number({"n": value}, "n")


def test_values_in_messages_are_short():
    assert shown("x" * 200) == "'" + "x" * 76 + "..."
