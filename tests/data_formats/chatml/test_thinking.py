from data_formats.chatml import with_reasoning
from data_formats.records import Message


def test_a_block_at_the_beginning_of_a_reply_becomes_reasoning():
    found = with_reasoning(
        [Message("user", "<think>x</think>"), Message("assistant", "\n<think>\nhm\n</think>\n\nyes")]
    )
    assert found == (Message("user", "<think>x</think>"), Message("assistant", "yes", reasoning="hm"))


def test_anything_else_stays_as_it_is():
    for message in (
        Message("assistant", "I wrote <think>hm</think>"),
        Message("assistant", "<think>never closed"),
        Message("assistant", "<think>a</think>b", reasoning="already"),
    ):
        assert with_reasoning([message]) == (message,)
