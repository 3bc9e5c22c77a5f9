"""What has loss under each mask, laid out by hand; and how a turn's parts are numbered."""

import pytest

from data_formats.chatml import MASKS, render
from data_formats.records import Message, ToolCall

TALK = [
    Message("system", "S"),
    Message("user", "U1"),
    Message("assistant", "A1"),
    Message("user", "U2"),
    Message("assistant", "A2"),
]
START, END = "<|im_start|>", "<|im_end|>"
# Every piece of TALK in order.
TEXTS = [
    part
    for role, content in (("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2"), ("assistant", "A2"))
    for part in (START, f"{role}\n", content, END, "\n")
]
# One letter a piece: the exchange its loss belongs to, "." for none.
EXPECTED = {
    "assistant_only": "..... ..... ..11. ..... ..22.",
    "last_turn_only": "..... ..... ..... ..... ..22.",
    "user_content_only": "11111 11.11 11111 22.22 22222",
    "qwen_script": "1..11 1..11 1.111 2..22 2.222",
    "all": "11111 11111 11111 22222 22222",
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_by_hand(mask):
    pieces = render(TALK, mask=mask)
    assert [piece.text for piece in pieces] == TEXTS
    assert "".join(str(piece.turn or ".") for piece in pieces) == EXPECTED[mask].replace(" ", "")
    assert [piece.loss for piece in pieces] == [piece.turn > 0 for piece in pieces]


def test_an_unknown_mask_or_thinking_is_named():
    with pytest.raises(ValueError, match=r"mask must be one of assistant_only, .*, found 'most'"):
        render(TALK, mask="most")
    with pytest.raises(ValueError, match="thinking must be one of keep, drop, template, found 'some'"):
        render(TALK, thinking="some")


def test_calls_have_loss_and_answers_none():
    talk = [
        Message("user", "U"),
        Message("assistant", "Let me see.", tool_calls=(ToolCall("f", '{"b":1,"a":"é"}'),)),
        Message("tool", "4"),
        Message("tool", "5"),
        Message("assistant", "Nine."),
    ]
    pieces = render(talk)
    trained = "".join(piece.text for piece in pieces if piece.loss)
    call = '\n<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": "é"}}\n</tool_call>'
    assert trained == f"Let me see.{call}{END}Nine.{END}"
    assert {piece.turn for piece in pieces} == {0, 1}  # a call, its answer and the reply are one exchange
    whole = "".join(piece.text for piece in pieces)
    answer = "<tool_response>\n{}\n</tool_response>"
    assert f"{START}user\n{answer.format(4)}\n{answer.format(5)}{END}\n" in whole
    answered = [piece for piece in render(talk, mask="user_content_only") if "\n4\n" in piece.text]
    assert [piece.turn for piece in answered] == [0]
    assert "".join(piece.text for piece in render(talk, mask="last_turn_only") if piece.loss) == f"Nine.{END}"


def test_tools_are_offered_below_the_system_turn_or_in_one_of_their_own():
    own = "".join(piece.text for piece in render([Message("user", "U")], tools=['{"name": "f"}']))
    assert own.startswith(f"{START}system\n# Tools\n") and '<tools>\n{"name": "f"}\n</tools>' in own
    below = "".join(piece.text for piece in render(TALK, tools=['{"name": "f"}']))
    assert below.startswith(f"{START}system\nS\n\n# Tools\n") and below.count(START) == len(TALK)


@pytest.mark.parametrize(
    ("thinking", "first", "last"),
    [
        ("keep", "<think>\nhm\n</think>\n\nA1", "<think>\nso\n</think>\n\nA2"),
        ("drop", "A1", "A2"),
        ("template", "A1", "<think>\nso\n</think>\n\nA2"),
    ],
)
def test_thinking_is_kept_dropped_or_as_the_template_does(thinking, first, last):
    talk = [
        Message("user", "U1"),
        Message("assistant", "A1", reasoning="hm\n"),
        Message("user", "U2"),
        Message("assistant", "\nA2" if thinking != "drop" else "A2", reasoning="\nso"),
    ]
    pieces = render(talk, thinking=thinking)
    assert "".join(piece.text for piece in pieces if piece.loss) == f"{first}{END}{last}{END}"


def test_the_template_gives_the_last_reply_an_empty_block():
    pieces = render(TALK, thinking="template")
    assert "".join(piece.text for piece in pieces if piece.turn == 2) == f"<think>\n\n</think>\n\nA2{END}"
