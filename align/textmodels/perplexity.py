"""How surprising plain text is to a causal language model, in nats.

A document is read alone, behind the token that the tokenizer puts before a text, else the one that ends documents, in
fixed blocks, so that every token, the end token included, is predicted once, from at most a block before it. Nats a
token (the logarithm of the perplexity) can be compared between texts of one model; they depend on its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from align.functional.logprobs import token_logprobs
from align.models.load import load_saved
from align.models.tokenizer import load_saved_tokenizer
from align.runtime.memory import memory_errors
from align.runtime.padding import pad_right
from align.runtime.peft_model import base_of
from data_formats.chat_format import chat_format
from data_formats.chatml import encode_texts
from reward.scoring import batches_by_length

TOKENS_AT_ONCE = 4096  # whose logits are held, padding included


@dataclass(frozen=True, slots=True)
class DocumentLosses:
    """Of each document the negative log-likelihood in nats, and how many tokens that is of."""

    nats: list[float]
    tokens: list[int]


def blocks_of(tokenizer: Any, text_ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """A document as inputs: `length` tokens to be predicted each (the last maybe fewer), behind one that is known."""
    end = chat_format(tokenizer).document_end_id
    opening = tokenizer("").input_ids[:1]  # without which a model that always read it is lost
    whole = [opening[0] if opening == [tokenizer.bos_token_id] else end, *text_ids, end]
    for start in range(0, len(whole) - 1, length):
        yield whole[start : start + length + 1]


@torch.no_grad()
def document_losses(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    block_length: int,
    told: Callable[[int], None] = lambda done: None,
) -> DocumentLosses:
    """The losses of documents.

    Args:
        model: a causal language model in evaluation mode.
        block_length: tokens before a token that it may be predicted from, at most.
        told: is called with about how many documents are done.
    """
    encoded = encode_texts(tokenizer, texts)
    blocks = [(at, block) for at, ids in enumerate(encoded) for block in blocks_of(tokenizer, ids, block_length)]
    nats, done = [0.0] * len(texts), 0
    device = next(model.parameters()).device
    for taken in batches_by_length([len(block) for _, block in blocks], len(blocks), TOKENS_AT_ONCE):
        some = [blocks[at] for at in taken]
        ids_BT, mask_BT = (one.to(device) for one in pad_right([block for _, block in some], tokenizer.pad_token_id))
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        logps_BT = token_logprobs(logits_BTV[:, :-1], ids_BT[:, 1:]).double() * mask_BT[:, 1:]
        for (document, _), total in zip(some, logps_BT.sum(dim=1).tolist(), strict=True):
            nats[document] -= total
        done += len(some)
        told(len(texts) * done // len(blocks))
    return DocumentLosses(nats, [len(ids) + 1 for ids in encoded])


class ModelPerplexity:
    """Texts -> nats a token under a model, which is loaded when the first text comes.

    Args:
        path: folder or hub id of a causal language model, as it was saved.
        window: tokens before a token that it may be predicted from, at most; a model with less room reads less.
    """

    def __init__(self, path: str, window: int = 1024):
        self._path, self._window = path, window

    def __call__(self, texts: Sequence[str]) -> list[float | None]:
        """One mean a text.

        Raises:
            MissingFileError, ModelFileError, TokenizerError: there is no such model, or it is damaged.
            OutOfMemoryError: a batch does not fit.
        """
        model, tokenizer = self._loaded
        config = base_of(model).config.get_text_config(decoder=True)
        room = (getattr(config, "max_position_embeddings", None) or self._window + 1) - 1
        with memory_errors(f"perplexity under {self._path}", f"window ({self._window})"):
            losses = document_losses(model, tokenizer, texts, min(self._window, room))
        return [nats / tokens for nats, tokens in zip(losses.nats, losses.tokens, strict=True)]

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any]:
        tokenizer = load_saved_tokenizer(self._path)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_saved(self._path, tokenizer).to(device), tokenizer
