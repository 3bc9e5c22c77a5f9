"""Pieces -> token ids.

Control tokens are looked up by name, plain text is encoded by a copy of the tokenizer that knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from align.runtime.terminal import shortened
from data_formats.chatml.pieces import IM_START, MARKS, Piece
from data_formats.chatml.plain import PlainTokenizer, plain_tokenizer
from data_formats.chatml.served import opening_token
from data_formats.chatml.words import split_words
from data_formats.errors import DataError

_Item = TypeVar("_Item")
SHORT = 12  # characters of a text that is likely to come again: role lines, newlines


class _Words:
    """Plain texts -> words -> ids, for one call; equal words are encoded once, see `data_formats.chatml.words`."""

    def __init__(self, tokenizer: Any):
        self.plain = plain_tokenizer(tokenizer)
        self.cut = split_words if self.plain.by_word else lambda text: [text]
        self.forbidden = self.plain.controls
        self.ids_of: dict[str, list[int]] = {}

    def learn(self, texts: Iterable[str]) -> list[list[str]]:
        """The words of each text; afterwards `ids_of` knows all of them.

        Raises:
            DataError: see `encode_texts`.
        """
        words_of = [self.cut(text) for text in texts]
        new = list(set(chain.from_iterable(words_of)) - self.ids_of.keys())
        for word, found in zip(new, self.plain.backend.encode_batch_fast(new, add_special_tokens=False), strict=True):
            ids = found.ids
            if not self.forbidden.isdisjoint(ids):
                raise DataError(
                    f"this tokenizer turns plain text into a control token (in {shortened(word)!r}); use another one"
                )
            self.ids_of[word] = ids
        return words_of

    def ids(self, words: Iterable[str]) -> list[int]:
        """The ids of a text, by its words."""
        return list(chain.from_iterable(map(self.ids_of.__getitem__, words)))


def encode_texts(tokenizer: Any, texts: Sequence[str], *, continues: bool = False) -> list[list[int]]:
    """Ids of plain texts, in batched calls.

    Args:
        continues: the texts go on where a role line ends (replies); else each stands by itself (documents).

    Raises:
        DataError: a text gave the id of an added token after all (a tokenizer whose model itself knows the token).
    """
    words, found = _Words(tokenizer), []
    begun = texts if continues or words.plain.alone is None else map(words.plain.alone, texts)
    for batch in _batches(begun):
        found += map(words.ids, words.learn(batch))
    return found


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Lists of at most 1024 items, each made when it is asked for."""
    rest = iter(items)
    while batch := list(islice(rest, 1024)):
        yield batch


def control_id(tokenizer: Any, token: str) -> int:
    """The id of a control token.

    Raises:
        DataError: the tokenizer does not know it.
    """
    token_id = tokenizer.get_added_vocab().get(token)
    if token_id is None:
        raise DataError(f"the tokenizer has no control token {token}; use a ChatML tokenizer such as Qwen's")
    return token_id


def encode_many(tokenizer: Any, conversations: Iterable[Sequence[Piece]]) -> list[tuple[list[int], list[int]]]:
    """`encode` for many conversations at once, which is many times faster than one after the other.

    Conversations that are rendered when they are asked for need little memory.
    """
    return [(row.ids, row.turns) for row in encode_rows(tokenizer, conversations)]


@dataclass(slots=True)
class EncodedRow:
    """Ids of a conversation, the exchange each is trained in (0 without loss), and labels (`no_loss` without loss)."""

    ids: list[int]
    turns: list[int]
    labels: list[int]


def encode_rows(
    tokenizer: Any, conversations: Iterable[Sequence[Piece]], no_loss: int = -100, *, first: str | None = None
) -> Iterator[EncodedRow]:
    """The conversations as ids, turns and labels, batch by batch.

    Args:
        first: the token that each begins with, "" for none; default: what the tokenizer's chat template writes before
            the first turn of ChatML (a BOS token, or nothing).

    Raises:
        DataError: see `encode`.
    """
    added = tokenizer.get_added_vocab()
    spelled = frozenset(mark for mark in MARKS if mark not in added)
    words, controls, short = _Words(tokenizer), dict[str, list[int]](), dict[str, list[int]]()
    begins = opening_token(tokenizer) if first is None else first
    head = [control_id(tokenizer, begins)] if begins else []
    for batch in _batches(conversations):
        laid_out = [_laid_out(pieces, spelled, words.plain) for pieces in batch]
        texts = [piece.text for pieces in laid_out for piece in pieces if not piece.control]
        new = list({text for text in texts if len(text) <= SHORT} - short.keys())
        short |= zip(new, map(words.ids, words.learn(new)), strict=True)
        long = iter(words.learn(text for text in texts if len(text) > SHORT))
        for pieces in laid_out:
            ids = list(head)
            turns = [0] * len(head)
            labels = [no_loss] * len(head)
            for piece in pieces:
                text, turn = piece.text, piece.turn
                if not piece.control:
                    found = short[text] if len(text) <= SHORT else words.ids(next(long))
                elif (found := controls.get(text)) is None:
                    found = controls[text] = [control_id(tokenizer, text)]
                ids += found
                turns += [turn] * len(found)
                labels += found if turn else [no_loss] * len(found)
            yield EncodedRow(ids, turns, labels)


def _laid_out(pieces: Sequence[Piece], spelled: frozenset[str], plain: PlainTokenizer) -> list[Piece]:
    """What the tokenizer gets: marks that it lacks are spelled, joined text is one string, and text that begins, or
    that follows a control token, begins with what the tokenizer puts there.

    The role line stays by itself, as when the model generates; so does text with loss beside text without.
    """
    rows: list[Piece] = []
    opens_turn = continues = False
    for piece in pieces:
        spell = piece.control and piece.text in spelled
        if piece.control and not spell:
            rows.append(piece)
            opens_turn, continues = piece.text == IM_START, False
            continue
        if continues and (spell or piece.joined) and rows[-1].turn == piece.turn:
            rows[-1] = Piece(rows[-1].text + piece.text, False, piece.turn)
        elif (put := plain.alone if not rows else plain.opening if rows[-1].control else None) is not None:
            rows.append(Piece(put(piece.text), False, piece.turn))
        else:
            rows.append(Piece(piece.text, False, piece.turn) if spell else piece)
        opens_turn, continues = False, not opens_turn
    return rows


def encode(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """Token ids of rendered pieces and, for each id, the number of the exchange it is trained in, 0 without loss.

    Raises:
        DataError: a control token is unknown to the tokenizer, or the tokenizer is not a fast one.
    """
    return encode_many(tokenizer, [pieces])[0]
