"""Pieces -> token ids.

Control tokens are looked up by name, plain text is encoded by a copy of the tokenizer that knows no added token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from data_formats.chatml.pieces import END_OF_TEXT, IM_END, IM_START, MARKS, Piece
from data_formats.errors import DataError

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


def encode_many(tokenizer: Any, conversations: Sequence[Sequence[Piece]]) -> list[tuple[list[int], list[int]]]:
    """`encode` for many conversations at once, which is many times faster than one after the other."""
    added = tokenizer.get_added_vocab()
    spelled = frozenset(mark for mark in MARKS if mark not in added)
    laid_out = [_laid_out(pieces, spelled) for pieces in conversations]
    text_ids = iter(encode_texts(tokenizer, [text for rows in laid_out for text, control, _ in rows if not control]))
    names = {text for rows in laid_out for text, control, _ in rows if control}
    controls = {name: [control_id(tokenizer, name)] for name in names}
    encoded = []
    for rows in laid_out:
        ids: list[int] = []
        turns: list[int] = []
        for text, control, turn in rows:
            piece_ids = controls[text] if control else next(text_ids)
            ids += piece_ids
            turns += [turn] * len(piece_ids)
        encoded.append((ids, turns))
    return encoded


def _laid_out(pieces: Sequence[Piece], spelled: frozenset[str]) -> list[tuple[str, bool, int]]:
    """(text, whether it is a control token, turn): marks the tokenizer lacks are spelled, joined text is one string.

    The role line stays by itself, as when the model generates; so does text with loss beside text without.
    """
    rows: list[tuple[str, bool, int]] = []
    opens_turn = continues = False
    for piece in pieces:
        spell = piece.control and piece.text in spelled
        if piece.control and not spell:
            rows.append((piece.text, True, piece.turn))
            opens_turn, continues = piece.text == IM_START, False
            continue
        if continues and (spell or piece.joined) and rows[-1][2] == piece.turn:
            rows[-1] = (rows[-1][0] + piece.text, False, piece.turn)
        else:
            rows.append((piece.text, False, piece.turn))
        opens_turn, continues = False, not opens_turn
    return rows


def stop_ids(tokenizer: Any) -> tuple[int, int]:
    """What ends a reply: `<|im_end|>`, which finishes it, and `<|endoftext|>`, which only stops it."""
    return control_id(tokenizer, IM_END), control_id(tokenizer, END_OF_TEXT)


def encode(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """Token ids of rendered pieces and, for each id, the number of the exchange it is trained in, 0 without loss.

    Raises:
        DataError: a control token is unknown to the tokenizer, or the tokenizer is not a fast one.
    """
    return encode_many(tokenizer, [pieces])[0]
