"""Texts that a language model finds too surprising, or not surprising at all (CCNet, Wenzek et al. 2020, 4.3).

The model comes from outside (`align.textmodels.perplexity`). Much surprise is noise, tables, another language; very
little is boilerplate and repetition. The unit is nats a token, the logarithm of the perplexity; it depends on the
model's tokenizer, so limits hold for one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import wanted_texts
from data_formats.records import Record


class Perplexity:
    """Records whose wanted replies (or document) lie outside the limits; of several texts each is looked at.

    Args:
        nats_a_token: texts -> the mean negative log-likelihood of a token, None of a text without tokens.
        min_nats, max_nats: limits, which are allowed; None: no limit.
        batch_size: records that are read at once.
    """

    name = "perplexity"
    looks_for = "texts that the model finds too likely or too unlikely"

    def __init__(
        self,
        nats_a_token: Callable[[Sequence[str]], list[float | None]],
        *,
        min_nats: float | None = None,
        max_nats: float | None = None,
        batch_size: int = 256,
    ):
        self._nats_a_token, self.batch_size = nats_a_token, batch_size
        self._least, self._most = min_nats, max_nats

    def check(self, record: Record) -> Finding | None:
        return self.check_all([record])[0]

    def check_all(self, records: Sequence[Record]) -> list[Finding | None]:
        """`check` of each, in one call of the model."""
        texts = [(at, text) for at, record in enumerate(records) for text in wanted_texts(record) if text.strip()]
        found: list[Finding | None] = [None] * len(records)
        for (at, text), nats in zip(texts, self._nats_a_token([text for _, text in texts]), strict=True):
            if nats is None or found[at] is not None:
                continue
            if self._least is not None and nats < self._least:
                found[at] = Finding("drop", "fewer nats a token than min_nats", f"{nats:.2f}: {text}")
            elif self._most is not None and nats > self._most:
                found[at] = Finding("drop", "more nats a token than max_nats", f"{nats:.2f}: {text}")
        return found
