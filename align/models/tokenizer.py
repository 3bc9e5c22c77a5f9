"""Tokenizers: training a small ChatML byte-level BPE, and loading any tokenizer to speak ChatML, as its own chat
template has it, or without turns.

The trained one is an ordinary `Qwen2Tokenizer` (NFC, Qwen2's pre-tokenizer with digits split singly, byte-level BPE
without unknown token), so that `AutoTokenizer`, vLLM and everything else load it like Qwen's own. Departures from
Qwen's: the control tokens come first (ids 0, 1, 2), the end token is `<|im_end|>` from the start, and the role names
are put into the training text, so that a small vocabulary spends one token on each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from align.models.speech import CONTROL_TOKENS, TokenizerError, generation_ends, speak
from align.recipe.model_section import ModelSection, TokenizerSection
from align.runtime.errors import AlignError, reason_of
from data_formats.chat_format import plain_template, remembered
from data_formats.chatml import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, WITH_BOS
from reward.errors import ModelFileError
from reward.folder import read_json
from reward.loading import hub_file, saved_tokenizer

logger = logging.getLogger(__name__)
SMALLEST_VOCAB = 256 + len(CONTROL_TOKENS)
ROLE_LINES = "system\nuser\nassistant\n"


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
    path: str | Path,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    own_template: bool = False,
    section: TokenizerSection | None = None,
) -> Any:
    """Load a tokenizer by folder or hub id and have it carry how its model speaks (`data_formats.chat_format`).

    Of ChatML the end token becomes `<|im_end|>` and the chat template ours (no default system turn; behind a BOS token
    where the tokenizer, or its own template, puts one first), so that a saved model is served with what it was trained
    with; a missing pad token becomes `<|endoftext|>` (masks come from lengths).

    Args:
        own_template: leave a ChatML tokenizer its own chat template, whose default system turn is trained with then.
        section: `model.tokenizer` of the recipe; default: as the folder says itself, else ChatML.

    Raises:
        MissingFileError: there is no such folder or hub id, or it holds no tokenizer.
        TokenizerError: it cannot be loaded, is not a fast tokenizer, was trained to speak in another way, lacks a token
            that it is to speak with, or its template serves other tokens than are trained.
    """
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    return _speaking(path, lambda tokenizer: section, own_template=own_template, **options)


def load_saved_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a saved model, made to speak as its folder says, without a recipe: as it was trained here; else
    by its own chat template, ChatML where it has that tokenizer's tokens and no template, and without turns where it
    has neither. Errors as of `load_tokenizer`.
    """
    return _speaking(path, lambda tokenizer: None if remembered(tokenizer) else _told_by_itself(tokenizer))


def _told_by_itself(tokenizer: Any) -> TokenizerSection:
    template = plain_template(tokenizer)
    if template in (CHAT_TEMPLATE.removesuffix("\n"), WITH_BOS.removesuffix("\n")):
        return TokenizerSection(template="chatml")
    if template:
        return TokenizerSection(template="own")
    knows = tokenizer.get_added_vocab().keys() >= {*CONTROL_TOKENS}
    return TokenizerSection(template="chatml" if knows else "none")


def _speaking(
    path: str | Path,
    section_of: Callable[[Any], TokenizerSection | None],
    *,
    own_template: bool = False,
    **options: Any,
) -> Any:
    try:
        tokenizer = saved_tokenizer(path, **options)

        def ends() -> list[int]:
            file = hub_file(path, "generation_config.json", **options)
            return generation_ends(read_json(file)) if file is not None else []

        for sentence in speak(tokenizer, path, section_of(tokenizer), ends=ends, own_template=own_template):
            logger.debug("%s: %s", path, sentence)
        return tokenizer
    except ModelFileError as error:
        raise TokenizerError(str(error)) from error
    except AlignError:
        raise
    except Exception as error:  # values of another type in tokenizer_config.json
        raise TokenizerError(f"{path}: the tokenizer cannot be used ({reason_of(error)})") from error


def recipe_tokenizer(path: str | Path, model: ModelSection, *, own_template: bool = False) -> Any:
    """`load_tokenizer` with what the recipe says; its revision belongs to `model.path` and to no other."""
    return load_tokenizer(
        path,
        trust_remote_code=model.trust_remote_code,
        revision=model.revision if str(path) == model.path else None,
        own_template=own_template,
        section=model.tokenizer,
    )
