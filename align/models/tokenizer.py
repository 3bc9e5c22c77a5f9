"""Tokenizers: training a small ChatML byte-level BPE, and loading any tokenizer that can speak ChatML.

The trained one is an ordinary `Qwen2Tokenizer` (NFC, Qwen2's pre-tokenizer with digits split singly, byte-level BPE
without unknown token), so that `AutoTokenizer`, vLLM and everything else load it like Qwen's own. Departures from
Qwen's: the control tokens come first (ids 0, 1, 2), the end token is `<|im_end|>` from the start, and the role names
are put into the training text, so that a small vocabulary spends one token on each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.runtime.errors import AlignError, reason_of
from data_formats.chatml import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    WITH_BOS,
    TemplateError,
    opening_token,
    render_template,
    template_difference,
)
from reward.errors import ModelFileError
from reward.loading import saved_tokenizer

logger = logging.getLogger(__name__)
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
SMALLEST_VOCAB = 256 + len(CONTROL_TOKENS)
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

    The end token becomes `<|im_end|>` and the chat template ours (no default system turn; behind a BOS token where the
    tokenizer, or its own template, puts one first), so that a saved model is served with what it was trained with; a
    missing pad token becomes `<|endoftext|>` (masks come from lengths).

    Args:
        own_template: leave the tokenizer its own chat template, whose default system turn is trained with then.

    Raises:
        MissingFileError: there is no such folder or hub id, or it holds no tokenizer.
        TokenizerError: it cannot be loaded, is not a fast tokenizer, lacks a ChatML control token, or its template
            serves other tokens than are trained.
    """
    try:
        tokenizer = saved_tokenizer(path, trust_remote_code=trust_remote_code, revision=revision)
    except ModelFileError as error:
        raise TokenizerError(str(error)) from error
    try:
        return _speaking_chatml(tokenizer, path, own_template=own_template)
    except AlignError:
        raise
    except Exception as error:  # values of another type in tokenizer_config.json
        raise TokenizerError(f"{path}: the tokenizer cannot be used ({reason_of(error)})") from error


def _speaking_chatml(tokenizer: Any, path: str | Path, *, own_template: bool) -> Any:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TokenizerError(f"{path}: {type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json)")
    missing = [token for token in CONTROL_TOKENS if token not in tokenizer.get_added_vocab()]
    if missing:
        names = ", ".join(missing)
        raise TokenizerError(f"{path}: the tokenizer lacks {names}; use a model with ChatML tokens, such as Qwen2.5")
    tokenizer.eos_token = IM_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = END_OF_TEXT
    bos = _begins_with_bos(tokenizer, path)
    if not own_template:
        tokenizer.chat_template = WITH_BOS if bos else CHAT_TEMPLATE
    _check_template(tokenizer, path, own=own_template, bos=bos)
    return tokenizer


def _begins_with_bos(tokenizer: Any, path: str | Path) -> bool:
    """Whether the model was trained with a BOS token before every text, as far as its tokenizer tells.

    Raises:
        TokenizerError: another token stands there.
    """
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    ids = tokenizer("x")["input_ids"]
    first = ids[: next((at for at in range(len(ids)) if ids[at : at + len(bare)] == bare), 0)]
    bos = tokenizer.bos_token
    if first and (first != [tokenizer.bos_token_id] or bos == IM_START):
        names = " ".join(tokenizer.convert_ids_to_tokens(first))
        raise TokenizerError(f"{path}: the tokenizer puts {names} before every text, which is no BOS token of ChatML's")
    template = str(tokenizer.chat_template or "")
    if first or bos in (None, IM_START) or not ("bos_token" in template or bos in template):
        return bool(first)
    try:
        return render_template(tokenizer, [{"role": "user", "content": "?"}]).startswith(bos)
    except TemplateError:  # it is replaced
        return False


def _check_template(tokenizer: Any, path: str | Path, *, own: bool, bos: bool) -> None:
    if not tokenizer.chat_template:  # default_system names that
        return
    whose = "its own chat template (default_system: template)" if own else "ChatML"
    try:
        difference = template_difference(tokenizer)
    except AlignError as error:
        raise TokenizerError(f"{path}: {whose} cannot be trained with this tokenizer: {error}") from error
    if difference is not None:
        raise TokenizerError(f"{path}: {whose} would not be served as it is trained: {difference}")
    try:
        difference = template_difference(tokenizer, tools=True)
    except TemplateError as error:
        difference = str(error)
    if own and bos and not opening_token(tokenizer):
        told = "its own chat template writes no BOS token, which the tokenizer puts before a text: none is trained"
        logger.warning("%s: %s", path, told)
    if difference is not None:
        logger.warning("%s: %s would not serve tools as they are trained: %s", path, whose, difference)
