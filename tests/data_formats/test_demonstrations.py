"""Demonstration rows in each shape."""

from collections import Counter

import pytest

from data_formats.demonstrations import parse_alpaca, parse_messages, parse_sharegpt
from data_formats.errors import DataError
from data_formats.formats import Dropped
from data_formats.records import Demonstration, Message

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))


def test_messages_with_category_and_source():
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}],
        "category": "maths",
        "source": "world",
    }
    assert parse_messages(row, Counter()) == Demonstration((U("q"), A("r")), "maths", "world")


def test_sharegpt_with_system_field():
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "system": "be"}
    assert parse_sharegpt(row, Counter()).messages == (S("be"), U("q"), A("r"))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, (U("i"), A("o"))),
        ({"instruction": "i", "input": None, "output": "o"}, (U("i"), A("o"))),
        ({"instruction": "i", "output": "o"}, (U("i"), A("o"))),
        ({"instruction": "i", "input": "x", "output": "o"}, (U("i\nx"), A("o"))),
        (
            {"instruction": "i", "output": "o", "system": "s", "history": [["a", "b"]]},
            (S("s"), U("a"), A("b"), U("i"), A("o")),
        ),
    ],
)
def test_alpaca(row, messages):
    assert parse_alpaca(row, Counter()).messages == messages


def test_alpaca_without_reply_is_dropped_and_malformed_names_the_field():
    with pytest.raises(Dropped, match="empty reply"):
        parse_alpaca({"instruction": "i", "output": " "}, Counter())
    with pytest.raises(DataError, match="field 'output': expected a string, found NoneType"):
        parse_alpaca({"instruction": "i", "output": None}, Counter())
    with pytest.raises(DataError, match=r"field 'history\[0\]': expected \[user, reply\], found 'x'"):
        parse_alpaca({"instruction": "i", "output": "o", "history": ["x"]}, Counter())
