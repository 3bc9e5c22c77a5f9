"""What a model without context would lose: the yardstick beside the base model's held-out loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence


def unigram_entropy(train: Iterable[Sequence[int]], heldout: Iterable[Sequence[int]], vocab_size: int) -> float:
    """Cross-entropy in nats a token of the held-out tokens under the training tokens' frequencies.

    One is added to every count, so that a token never seen costs something finite. The first token of every held-out
    block is left out: the model is not asked to predict it either, so both figures are over the same tokens.

    Args:
        train, heldout: blocks of token ids.
        vocab_size: number of possible tokens.
    """
    seen = Counter(token for block in train for token in block)
    asked = Counter(token for block in heldout for token in block[1:])
    total = seen.total() + vocab_size
    return -sum(n * math.log((seen[token] + 1) / total) for token, n in asked.items()) / max(asked.total(), 1)
