"""Ghost Attention's two views of a conversation (Llama 2, appendix A.3.5): an instruction on every user turn, which is
what a reply is sampled under, and the same instruction on the first user turn alone, which is what is trained.

The instruction stands before the turn's own text, a blank line between. The paper writes it "synthetically
concatenated" without saying how, and leaves out a system turn; here a system turn stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_formats.records import Message


def instruct_every_turn(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The turns with `instruction` before the text of every user turn; all else as it is."""
    return tuple(_instructed(message, instruction) if message.role == "user" else message for message in messages)


def instruct_first_turn(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The turns with `instruction` before the text of the first user turn; all else as it is."""
    first = next((at for at, message in enumerate(messages) if message.role == "user"), None)
    return tuple(_instructed(message, instruction) if at == first else message for at, message in enumerate(messages))


def _instructed(message: Message, instruction: str) -> Message:
    return replace(message, content=f"{instruction}\n\n{message.content}" if message.content else instruction)
