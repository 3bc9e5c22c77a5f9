"""A conversation -> pieces, each with whether the model is trained to produce it.

Which pieces have loss is the mask mode's choice:

    assistant_only      assistant content (thinking and tool calls included) and its `<|im_end|>`      the default
    last_turn_only      the same, of the last assistant turn alone
    user_content_only   everything but the content of user turns and of tools' answers                 Qwen's tech memo
    qwen_script         assistant content, and in every turn `<|im_start|>`, `<|im_end|>` and the newline after it
                        (Qwen's finetune.py, token for token)
    all                 everything

A turn whose `Message.loss` is False has none under any of them.

The report (3.1.2) masks system and user inputs and leaves open which marks count; `assistant_only` trains what the
model will have to say. Its causal shift is the trainer's: the very first token never counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from data_formats.chatml import tools as tool_format
from data_formats.chatml.pieces import END_THINK, IM_END, IM_START, THINK, Piece
from data_formats.records import Message

Mask = Literal["assistant_only", "user_content_only", "qwen_script", "last_turn_only", "all"]
Thinking = Literal["keep", "drop", "template"]
MASKS: tuple[str, ...] = get_args(Mask)
THINKING: tuple[str, ...] = get_args(Thinking)
_START = Piece(IM_START, True)


@dataclass(frozen=True, slots=True)
class _Loss:
    """Which parts of one turn have loss."""

    start: bool
    role: bool
    content: bool
    end: bool
    newline: bool


_NOTHING = _Loss(False, False, False, False, False)
_EVERYTHING = _Loss(True, True, True, True, True)
_REPLY = _Loss(False, False, True, True, False)
_MARKS = _Loss(True, False, False, True, True)
_MARKS_AND_REPLY = _Loss(True, False, True, True, True)
_ALL_BUT_CONTENT = _Loss(True, True, False, True, True)


def _loss(mask: str, role: str, last: bool) -> _Loss:
    """`last`: this is the last assistant turn; role "tool" is a user turn."""
    replies = role == "assistant"
    if mask == "assistant_only":
        return _REPLY if replies else _NOTHING
    if mask == "last_turn_only":
        return _REPLY if replies and last else _NOTHING
    if mask == "qwen_script":
        return _MARKS_AND_REPLY if replies else _MARKS
    if mask == "user_content_only":
        return _ALL_BUT_CONTENT if role in ("user", "tool") else _EVERYTHING
    if mask == "all":
        return _EVERYTHING
    raise ValueError(f"mask must be one of {', '.join(MASKS)}, found {mask!r}")


def render(
    messages: Iterable[Message],
    *,
    tools: Sequence[str] = (),
    mask: str = "assistant_only",
    thinking: str = "keep",
    add_generation_prompt: bool = False,
) -> list[Piece]:
    """The pieces of a conversation.

    Args:
        messages: the turns, in order. No system turn is added, except to offer `tools`.
        tools: JSON text of each function on offer.
        mask: see the module's head.
        thinking: "keep" renders every `reasoning`, "drop" none, "template" does as Qwen3's chat template: what was
            thought before the last user turn is left out, and the last reply has a block even when it is empty.
        add_generation_prompt: append the opening of an assistant turn.

    Raises:
        ValueError: an unknown mask or thinking.
    """
    messages = list(messages)
    if thinking not in THINKING:
        raise ValueError(f"thinking must be one of {', '.join(THINKING)}, found {thinking!r}")
    if tools and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", ""))
    last_reply = _last(messages, "assistant") if mask == "last_turn_only" else None
    last_query = _last(messages, "user") if thinking == "template" else None
    pieces: list[Piece] = []
    exchange = at = 0
    while at < len(messages):
        message, end = messages[at], at + 1
        role = message.role
        if role == "tool":
            while end < len(messages) and messages[end].role == "tool":
                end += 1
        elif role == "user":
            exchange += 1
        frame = _frame(mask, role, at == last_reply, exchange, message.loss)
        pieces += frame.head
        if role == "tool":
            pieces += tool_format.answers(messages[at:end], frame.content, frame.marks)
        elif tools and at == 0:
            pieces += tool_format.offer(message.content, tools, frame.content)
        elif message.reasoning or message.tool_calls or last_query is not None:
            shown = _shows_thinking(message, thinking, at, last_query, end == len(messages))
            pieces += _content(message, frame.content, shown)
        elif message.content:
            pieces.append(Piece(message.content, False, frame.content))
        pieces += frame.tail
        at = end
    if add_generation_prompt:
        pieces += (_START, Piece("assistant\n"))
    return pieces


def render_reply(reply: Message) -> list[Piece]:
    """The pieces of a reply alone, which follow the opening of an assistant turn: content and `<|im_end|>`."""
    return [*_content(reply, 0, bool(reply.reasoning)), Piece(IM_END, True)]


def _last(messages: Sequence[Message], role: str) -> int:
    """Where the last turn of a role stands, -1 without any."""
    return max((at for at, message in enumerate(messages) if message.role == role), default=-1)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands before and after the content of a turn; `Piece.turn` of its content and of marks inside it."""

    head: tuple[Piece, ...]
    tail: tuple[Piece, ...]
    content: int
    marks: int


@lru_cache(maxsize=4096)
def _frame(mask: str, role: str, last: bool, exchange: int, trained: bool) -> _Frame:
    loss, turn = _loss(mask, role, last) if trained else _NOTHING, max(exchange, 1)
    line = Piece(f"{'user' if role == 'tool' else role}\n", False, loss.role * turn)
    start, end = Piece(IM_START, True, loss.start * turn), Piece(IM_END, True, loss.end * turn)
    newline = Piece("\n", False, loss.newline * turn)
    return _Frame((start, line), (end, newline), loss.content * turn, loss.end * turn)


def _shows_thinking(message: Message, thinking: str, at: int, last_query: int | None, last: bool) -> bool:
    if message.role != "assistant" or thinking == "drop":
        return False
    if last_query is None:
        return bool(message.reasoning)
    return at > last_query and (last or bool(message.reasoning))


def _content(message: Message, turn: int, shows_thinking: bool) -> Iterator[Piece]:
    text = message.content
    if shows_thinking:
        yield Piece(THINK, True, turn)
        yield Piece("\n" + message.reasoning.strip("\n") + "\n", False, turn, True)
        yield Piece(END_THINK, True, turn)
        text = "\n\n" + text.lstrip("\n")
    if text:
        yield Piece(text, False, turn, shows_thinking)
    if message.tool_calls:
        yield from tool_format.calls(message, turn)
