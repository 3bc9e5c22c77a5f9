import pytest

from data_formats.records import Demonstration, Message


@pytest.mark.parametrize(
    ("roles", "before"),
    [
        (["user", "assistant"], 1),
        (["system", "user", "assistant", "user", "assistant"], 4),
        (["user", "assistant", "user"], 1),  # the last reply, not the last turn
        (["assistant"], None),  # nothing to answer
        (["user"], None),
    ],
)
def test_the_last_exchange(roles, before):
    messages = tuple(Message(role, str(at)) for at, role in enumerate(roles))
    expected = None if before is None else (messages[:before], str(before))
    assert Demonstration(messages).last_exchange() == expected
