"""What a model still knows of plain text, before and after it was aligned: the alignment tax.

The loss is over whole documents, their end token included: each is read alone, behind the token that the tokenizer puts
before a text, else the one that ends documents, in fixed blocks, so that every token is predicted once, from at most a
block before it. Nats a token can be compared
between models of one tokenizer alone, bits per byte between any two. Documents are independent and tokens are not, so
the intervals of differences are those of ratios of sums over documents (normal approximation, 1.96 standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from align.functional.logprobs import token_logprobs
from align.runtime.padding import pad_right
from data_formats.chat_format import chat_format
from data_formats.chatml import encode_texts

TOKENS_AT_ONCE = 4096  # whose logits are held


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
    order = sorted(blocks, key=lambda one: -len(one[1]))
    nats, at_once = [0.0] * len(texts), max(TOKENS_AT_ONCE // (block_length + 1), 1)
    device = next(model.parameters()).device
    for start in range(0, len(order), at_once):
        some = order[start : start + at_once]
        ids_BT, mask_BT = (one.to(device) for one in pad_right([block for _, block in some], tokenizer.pad_token_id))
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        logps_BT = token_logprobs(logits_BTV[:, :-1], ids_BT[:, 1:]).double() * mask_BT[:, 1:]
        for (document, _), total in zip(some, logps_BT.sum(dim=1).tolist(), strict=True):
            nats[document] -= total
        told(len(texts) * (start + len(some)) // len(order))
    return DocumentLosses(nats, [len(ids) + 1 for ids in encoded])


def loss_difference(before: DocumentLosses, after: DocumentLosses, texts: Sequence[str]) -> dict[str, Any]:
    """`before` and `after`, each with `loss` (nats a token) and `bits_per_byte`; `difference` with `difference`, `low`
    and `high` for both, None for `loss` where the tokenizers cut the documents differently; `documents`, `tokens`
    (after) and `bytes` (UTF-8)."""
    sizes = [len(text.encode(errors="surrogatepass")) for text in texts]
    more = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
    same = before.tokens == after.tokens
    found: dict[str, Any] = {
        name: {
            "loss": math.fsum(one.nats) / sum(one.tokens),
            "bits_per_byte": math.fsum(one.nats) / math.log(2) / sum(sizes),
        }
        for name, one in (("before", before), ("after", after))
    }
    found["difference"] = {
        "loss": ratio(more, after.tokens) if same else None,
        "bits_per_byte": ratio([value / math.log(2) for value in more], sizes),
    }
    return found | {"documents": len(texts), "tokens": sum(after.tokens), "bytes": sum(sizes)}


def ratio(sums: Sequence[float], sizes: Sequence[int]) -> dict[str, float | None]:
    """`difference`: the sums over the sizes of all clusters, with its interval `low` to `high`, as of a ratio
    estimator (Cochran 1977, 6.3); None of one cluster, which does not say how they differ."""
    n, size = len(sums), sum(sizes)
    center = math.fsum(sums) / size
    if n < 2:
        return {"difference": center, "low": None, "high": None}
    between = math.fsum((total - center * own) ** 2 for total, own in zip(sums, sizes, strict=True))
    half = 1.96 * math.sqrt(n / (n - 1) * between) / size
    return {"difference": center, "low": center - half, "high": center + half}
