"""ChatML, rendered piece by piece so that text can never become a control token.

A turn is `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` (Qwen technical report, A.1.1). Control tokens are looked up by
name; everything else is encoded by a copy of the tokenizer that knows no added token at all, so `<|im_end|>` typed by
a user stays the characters it is. (Departure from tokenising the rendered string: no merge reaches across a piece's
border, as in Qwen's own finetune.py. A tokenizer's `split_special_tokens=True` would not do: it still lets through
tokens that are merely "added", such as Qwen2.5's `<tool_call>`.)

Tokenizers are duck-typed: anything with `backend_tokenizer` (tokenizers.Tokenizer) and `get_added_vocab`, i.e. every
fast Hugging Face tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from data_formats.errors import DataError
from data_formats.records import Message

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    Attributes:
        text: the characters, or the name of one control token.
        control: whether `text` is a control token.
        loss: whether the model is trained to produce it.
    """

    text: str
    control: bool
    loss: bool


_START, _NEWLINE = Piece(IM_START, True, False), Piece("\n", False, False)
_END, _END_WITH_LOSS = Piece(IM_END, True, False), Piece(IM_END, True, True)


def render(messages: Iterable[Message], *, add_generation_prompt: bool = False) -> list[Piece]:
    """The pieces of a conversation; loss on assistant content and the `<|im_end|>` that closes it, nowhere else.

    Args:
        messages: the turns, in order. No system turn is added.
        add_generation_prompt: append the opening of an assistant turn.
    """
    pieces: list[Piece] = []
    for message in messages:
        loss = message.role == "assistant"
        pieces += (_START, Piece(f"{message.role}\n", False, False))
        if message.content:
            pieces.append(Piece(message.content, False, loss))
        pieces += (_END_WITH_LOSS if loss else _END, _NEWLINE)
    if add_generation_prompt:
        pieces += (_START, Piece("assistant\n", False, False))
    return pieces


_PLAIN: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _plain_tokenizer(tokenizer: Any) -> Any:
    """A copy of the backend without added tokens; made once per tokenizer, tokens added later do not concern it."""
    if tokenizer in _PLAIN:
        return _PLAIN[tokenizer]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"{type(tokenizer).__name__} is not a fast tokenizer; ChatML needs one with a tokenizer.json")
    state = json.loads(backend.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    _PLAIN[tokenizer] = type(backend).from_str(json.dumps(state))
    return _PLAIN[tokenizer]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of plain texts, one batched call; equal texts are encoded once.

    Raises:
        DataError: a text gave the id of an added token after all (a tokenizer whose model itself knows the token).
    """
    plain, unique = _plain_tokenizer(tokenizer), list(dict.fromkeys(texts))
    forbidden = set(tokenizer.get_added_vocab().values())
    encoded = dict(zip(unique, (e.ids for e in plain.encode_batch_fast(unique, add_special_tokens=False)), strict=True))
    for text, ids in encoded.items():
        if not forbidden.isdisjoint(ids):
            raise DataError(f"this tokenizer turns plain text into a control token (in {text[:60]!r}); use another one")
    return [encoded[text] for text in texts]


def control_id(tokenizer: Any, token: str) -> int:
    """The id of a control token.

    Raises:
        DataError: the tokenizer does not know it.
    """
    token_id = tokenizer.get_added_vocab().get(token)
    if token_id is None:
        raise DataError(f"the tokenizer has no control token {token}; use a ChatML tokenizer such as Qwen's")
    return token_id


def encode_many(tokenizer: Any, conversations: Sequence[Sequence[Piece]]) -> list[tuple[list[int], list[bool]]]:
    """`encode` for many conversations at once, which is many times faster than one after the other."""
    texts = [piece.text for pieces in conversations for piece in pieces if not piece.control]
    text_ids = iter(encode_texts(tokenizer, texts))
    names = {piece.text for pieces in conversations for piece in pieces if piece.control}
    controls = {name: [control_id(tokenizer, name)] for name in names}
    encoded = []
    for pieces in conversations:
        ids: list[int] = []
        flags: list[bool] = []
        for piece in pieces:
            piece_ids = controls[piece.text] if piece.control else next(text_ids)
            ids += piece_ids
            flags += [piece.loss] * len(piece_ids)
        encoded.append((ids, flags))
    return encoded


def stop_ids(tokenizer: Any) -> tuple[int, int]:
    """What ends a reply: `<|im_end|>`, which finishes it, and `<|endoftext|>`, which only stops it."""
    return control_id(tokenizer, IM_END), control_id(tokenizer, END_OF_TEXT)


def encode(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    """Token ids of rendered pieces and, for each id, whether it has loss.

    Raises:
        DataError: a control token is unknown to the tokenizer, or the tokenizer is not a fast one.
    """
    return encode_many(tokenizer, [pieces])[0]
