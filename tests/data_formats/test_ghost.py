from data_formats.ghost import instruct_every_turn, instruct_first_turn
from data_formats.records import Message

TALK = (
    Message("system", "Be brief."),
    Message("user", "Who?"),
    Message("assistant", "I.", reasoning="me"),
    Message("user", ""),
)


def test_every_user_turn_gets_the_instruction():
    first, second, third, fourth = instruct_every_turn(TALK, "Act as Ann.")
    assert (first, third) == (TALK[0], TALK[2])
    assert (second, fourth) == (Message("user", "Act as Ann.\n\nWho?"), Message("user", "Act as Ann."))


def test_only_the_first_user_turn_gets_it():
    found = instruct_first_turn(TALK, "Act as Ann.")
    assert found == (TALK[0], Message("user", "Act as Ann.\n\nWho?"), *TALK[2:])


def test_without_a_user_turn_nothing_changes():
    assert instruct_every_turn(TALK[:1], "x") == instruct_first_turn(TALK[:1], "x") == TALK[:1]
    assert instruct_every_turn((), "x") == instruct_first_turn((), "x") == ()
