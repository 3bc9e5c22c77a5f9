"""What a model still knows of plain text, before and after it was aligned: the alignment tax.

The loss is over whole documents, their end token included (`align.textmodels.perplexity`). Nats a token can be compared
between models of one tokenizer alone, bits per byte between any two. Documents are independent and tokens are not, so
the intervals of differences are those of ratios of sums over documents (normal approximation, 1.96 standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from align.textmodels.perplexity import DocumentLosses


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
