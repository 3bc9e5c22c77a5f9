"""Tokenizers: training a small ChatML byte-level BPE, and loading any tokenizer that can speak ChatML.

The trained one is an ordinary `Qwen2Tokenizer` (NFC, Qwen2's pre-tokenizer with digits split singly, byte-level BPE
without unknown token), so that `AutoTokenizer`, vLLM and everything else load it like Qwen's own. Departures from
Qwen's: the control tokens come first (ids 0, 1, 2), the end token is `<|im_end|>` from the start, and the role names
are put into the training text, so that a small vocabulary spends one token on each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.runtime.paths import typed_path
from data_formats.chatml import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START
from data_formats.errors import AlignError, MissingFileError

CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
SMALLEST_VOCAB = 256 + len(CONTROL_TOKENS)
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
ROLE_LINES = "system\nuser\nassistant\n"


class TokenizerError(AlignError, ValueError):
    """A tokenizer that cannot be trained, loaded or used for ChatML."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a ChatML byte-level BPE tokenizer.

    Args:
        texts: what it should be good at.
        vocab_size: control tokens and the 256 bytes included; fewer come out when the texts give fewer merges.

    Returns:
        A `transformers.Qwen2Tokenizer`: pad `<|endoftext|>`, end `<|im_end|>`, chat template set.

    Raises:
        TokenizerError: `vocab_size` is below 259.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    if vocab_size < SMALLEST_VOCAB:
        raise TokenizerError(f"vocab_size is {vocab_size}, but 256 bytes and 3 control tokens need {SMALLEST_VOCAB}")
    backend = Qwen2Tokenizer(unk_token=None).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((part for text in texts for part in (text, ROLE_LINES)), trainer)
    model = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(
    path: str | Path, *, trust_remote_code: bool = False, revision: str | None = None, own_template: bool = False
) -> Any:
    """Load a tokenizer by folder or hub id and make sure that it speaks ChatML.

    The end token becomes `<|im_end|>` and the chat template ours (no default system turn), so that a saved model is
    served with what it was trained with; a missing pad token becomes `<|endoftext|>` (masks come from lengths).

    Args:
        own_template: leave the tokenizer its own chat template, whose default system turn is trained with then.

    Raises:
        MissingFileError: `path` looks like a folder and is not there, or holds no tokenizer.
        TokenizerError: it cannot be loaded, is not a fast tokenizer, or lacks a ChatML control token.
    """
    from transformers import AutoTokenizer

    folder = typed_path(path)
    if not folder.is_dir() and (folder.is_absolute() or str(path).startswith(".") or str(path).count("/") > 1):
        raise MissingFileError(f"{path}: no such folder; expected a model folder with its tokenizer, or a hub id")
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise MissingFileError(f"{path}: the folder holds no tokenizer (tokenizer.json)")
    try:
        where = str(folder if folder.is_dir() else path)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:
        raise TokenizerError(f"{path}: the tokenizer cannot be loaded ({str(error).splitlines()[0]})") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TokenizerError(f"{path}: {type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json)")
    missing = [token for token in CONTROL_TOKENS if token not in tokenizer.get_added_vocab()]
    if missing:
        names = ", ".join(missing)
        raise TokenizerError(f"{path}: the tokenizer lacks {names}; use a model with ChatML tokens, such as Qwen2.5")
    tokenizer.eos_token = IM_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = END_OF_TEXT
    if not own_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
