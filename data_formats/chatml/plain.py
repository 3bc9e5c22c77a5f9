"""A tokenizer for plain text alone: a copy of the backend that knows no control token and puts nothing before a text.

An added token that stands for nothing but text stays in it: one that is not special and that is white space alone
(GPT-NeoX's runs of spaces) or that the vocabulary holds anyway (Gemma's newlines and tags).

Tokenizers after Llama's put a space before every text ("▁Hello"), or before every stretch of it that follows a control
token. Where the pieces of a turn are encoded one by one, that must happen once, at the head of the stretch: so the copy
never does it, and `PlainTokenizer.opening` is that space, for the piece that opens one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from data_formats.chatml.words import encodes_word_by_word
from data_formats.errors import DataError

_MADE: WeakKeyDictionary[Any, PlainTokenizer] = WeakKeyDictionary()
_Change = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class PlainTokenizer:
    """What encodes plain text.

    Attributes:
        backend: a `tokenizers.Tokenizer` without control tokens.
        controls: the ids of the added tokens that it does not know.
        by_word: whether it may be given single words (`data_formats.chatml.words`).
        alone: what is put before a text that stands by itself, such as a document; None: nothing.
        opening: what is put before a text that follows a control token; None: nothing.
    """

    backend: Any
    controls: frozenset[int]
    by_word: bool
    alone: _Change | None = None
    opening: _Change | None = None


def plain_tokenizer(tokenizer: Any) -> PlainTokenizer:
    """Made once per tokenizer; tokens added later do not concern it.

    Raises:
        DataError: not a fast tokenizer.
    """
    if tokenizer not in _MADE:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; ChatML needs one with a tokenizer.json"
            )
        state = json.loads(backend.to_str())
        text = [token for token in state.get("added_tokens") or () if _is_text(token, state["model"])]
        state.update(added_tokens=text, post_processor=None, truncation=None, padding=None)
        alone, opening = _taken_out(state)
        plain = type(backend).from_str(json.dumps(state))
        if any(plain.token_to_id(token["content"]) != token["id"] for token in text):  # their ids follow the controls'
            text = state["added_tokens"] = []
            plain = type(backend).from_str(json.dumps(state))
        by_word = not text and encodes_word_by_word(state)
        controls = frozenset(tokenizer.get_added_vocab().values()) - {token["id"] for token in text}
        _MADE[tokenizer] = PlainTokenizer(plain, controls, by_word, alone, opening)
    return _MADE[tokenizer]


def _is_text(token: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether an added token stands for nothing but text."""
    if token["special"]:
        return False
    content, id_, vocabulary = token["content"], token["id"], model.get("vocab") or {}
    if isinstance(vocabulary, dict):
        known = vocabulary.get(content) == id_
    else:  # Unigram: pairs of token and score
        known = id_ < len(vocabulary) and vocabulary[id_][0] == content
    return known or not content.replace("\u2581", "").strip()


def _taken_out(state: dict[str, Any]) -> tuple[_Change | None, _Change | None]:
    """What the tokenizer of this `tokenizer.json` puts before a text (alone, after a control token); no longer does.

    A pre-tokenizer that does so after another one has cut the text does it to every part, which is left as it is.
    """
    normalizer = state.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    for at, step in enumerate(steps):
        if step.get("type") == "Prepend":
            state["normalizer"] = {"type": "Sequence", "normalizers": steps[:at] + steps[at + 1 :]}
            always = partial(_put, step["prepend"], ())
            return always, always
    cutter = state.get("pre_tokenizer") or {}
    first = (cutter.get("pretokenizers") or [cutter])[0]
    if first.get("type") == "ByteLevel" and first.get("add_prefix_space"):
        first["add_prefix_space"] = False
        spaced = partial(_put, " ", (" ",))
        return spaced, spaced
    scheme = first.get("prepend_scheme", "never")
    if first.get("type") == "Metaspace" and scheme != "never":
        first["prepend_scheme"] = "never"
        spaced = partial(_put, " ", (" ", first["replacement"]))
        return spaced, spaced if scheme == "always" else None
    return None, None


def _put(mark: str, unless: tuple[str, ...], text: str) -> str:
    """`mark` before a text that does not begin with one of `unless`."""
    return text if unless and text.startswith(unless) else mark + text
