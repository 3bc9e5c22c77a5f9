"""What a rendered conversation is made of."""

from __future__ import annotations

from dataclasses import dataclass

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
# Marks that the format itself writes. Newer Qwen tokenizers have tokens for some of them, older ones spell them.
THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, END_TOOL_RESPONSE = "<tool_response>", "</tool_response>"
MARKS = frozenset({THINK, END_THINK, TOOL_CALL, END_TOOL_CALL, TOOL_RESPONSE, END_TOOL_RESPONSE})


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    Attributes:
        text: the characters, or the name of one control token.
        control: whether `text` is a control token; one of `MARKS` is plain text to a tokenizer that lacks it.
        turn: number of the exchange (a user turn and what answers it, from 1) in which the model is trained to produce
            the piece; 0 where it is not.
        joined: whether plain text continues the plain text before it, as one string to the tokenizer.
    """

    text: str
    control: bool = False
    turn: int = 0
    joined: bool = False

    @property
    def loss(self) -> bool:
        """Whether the model is trained to produce it."""
        return self.turn > 0
