"""Instruction-following difficulty: the loss of a reply given its prompt over its loss alone, under a language model.

    IFD = loss(reply | prompt) / loss(reply | no prompt)        each the mean over the reply's tokens, in nats

Li et al., "From Quantity to Quality" (Cherry LLM, 2308.12032). Near 0 the prompt tells the model all about the reply,
near 1 nothing: such a row is hard, and there is something to learn from it. At 1 and above the prompt is of no help at
all; the paper leaves such rows out, since the reply most likely belongs to another prompt, and here they have no score.

Departures:

- "No prompt" is the model's own form with an empty user turn and no system turn, not bare text, so that both losses are
  of the very same tokens at the same kind of place, the first one included (both leave it out where nothing at all
  stands before it, in a form without turns).
- The end token does not count: when a model stops says nothing of what was asked.
- The model is the one that is named, as it is. The paper trains its own on 1,000 rows first: name the model of an sft
  stage on some of the data for that.
- Of a conversation the last reply is judged, behind all turns before it; of a comparison the chosen one.
- `length_free`: per-token means still depend on length. The longer a reply, the more of its tokens are told by those
  before them whatever the prompt, so the ratio grows towards 1, and the ratios of short replies lie further apart. So a
  row's difficulty is its place among rows with replies of about its length (`scale.quantiles_at_length`).

Rows lie in batches by length. Logits are made where a token of a reply is judged alone, a block at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from align.curation.kept import Kept, Numbers
from align.curation.scale import quantiles_at_length
from align.curation.scorer import rated, require_kinds
from align.data.encode import encode_prompt, encode_prompts, encode_replies
from align.data.replies import PromptedReply
from align.functional.linear_logprobs import TokenQuestion
from align.recipe.scorer_sections import IFDDifficultySection
from align.runtime.memory import memory_errors
from align.runtime.padding import pad_right
from align.trainers.causal_forward import ask_at
from data_formats.records import Message, Record
from reward.forward import position_room
from reward.scoring import batches_by_length

logger = logging.getLogger(__name__)
NOTHING = (Message("user", ""),)  # the prompt of a reply that is judged alone


class IFD:
    """Difficulty by loss ratio; a `RecordScorer`.

    Args:
        model: a causal language model; stays on its device.
        tokenizer: the model's, which says how it speaks.
        max_length, batch_tokens, length_free: see `IFDDifficultySection`.
        kept: where losses are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_length: int = 2048,
        batch_tokens: int = 8192,
        length_free: bool = True,
        kept: Kept | None = None,
    ):
        self.name, self.length_free = "ifd", length_free
        self._model, self._tokenizer, self._batch_tokens = model, tokenizer, batch_tokens
        self._max_length = min(max_length, position_room(model) or max_length)
        self._kept = kept or Kept(None, {})

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """The ratio, or with `length_free` its quantile among rows of about its length, in (0, 1). None: there is no
        reply, it or its prompt is too long or too short to be judged, or the prompt is of no help.

        Raises:
            ScorerError: a kind of record without replies.
            DataError: the model's chat template refuses a conversation.
            OutOfMemoryError: a batch is too large.
        """
        found = self.losses(records)
        ratios = [None if one is None or one[1] <= 0 else one[0] / one[1] for one in found]
        helpless = sum(ratio is not None and ratio >= 1 for ratio in ratios)
        if helpless:
            logger.info("%s: of %d replies the loss is no lower with their prompt: no score", self.name, helpless)
        helped = [None if ratio is None or ratio >= 1 else ratio for ratio in ratios]
        return quantiles_at_length(helped, [one[2] if one else 0 for one in found]) if self.length_free else helped

    def losses(self, records: Sequence[Record]) -> list[Numbers]:
        """Of each record (loss given the prompt, loss alone, tokens): nats a token, and how many tokens. None where
        there is nothing to judge. Errors as of `score`."""
        require_kinds(records, self.name, IFDDifficultySection.rates)
        pairs = [rated(record) for record in records]
        asked = [pair[0] for pair in pairs if pair is not None]
        found = iter(self._kept.numbers(asked, self._rate))
        return [None if pair is None else next(found) for pair in pairs]

    @torch.no_grad()
    def _rate(self, asked: Sequence[PromptedReply]) -> list[Numbers]:
        rows = [row for both in self._rows(asked) for row in both]
        judged = [at for at, row in enumerate(rows) if row.count > 0]
        losses: list[float | None] = [None] * len(rows)
        self._model.eval()
        with memory_errors(f"the scorer {self.name!r}", f"batch_tokens ({self._batch_tokens})"):
            for batch in batches_by_length([len(rows[at].ids) for at in judged], len(rows), self._batch_tokens):
                chosen = [judged[place] for place in batch]
                for at, loss in zip(chosen, self._mean_losses([rows[at] for at in chosen]), strict=True):
                    losses[at] = loss
        pairs = zip(losses[::2], losses[1::2], rows[::2], strict=True)
        return [(given, alone, float(row.count)) if _is_told(given, alone) else None for given, alone, row in pairs]

    def _rows(self, asked: Sequence[PromptedReply]) -> list[tuple[_Row, _Row]]:
        """Each reply behind its prompt and alone, as much of it as there is room for behind the longer of the two."""
        prompts = encode_prompts(self._tokenizer, [one.prompt for one in asked], [one.tools for one in asked])
        alone = encode_prompt(self._tokenizer, NOTHING)
        replies = encode_replies(self._tokenizer, [one.reply for one in asked])
        rows = []
        for prompt, reply in zip(prompts, replies, strict=True):
            told = reply[:-1][: max(self._max_length - max(len(prompt), len(alone)), 0)]
            count = len(told) - (not (prompt and alone))  # a first token that nothing stands before
            rows.append((_Row([*prompt, *told], count), _Row([*alone, *told], count)))
        return rows

    def _mean_losses(self, rows: Sequence[_Row]) -> list[float]:
        device = next(self._model.parameters()).device
        ids_BT, mask_BT = pad_right([row.ids for row in rows], 0)
        ends = [number * ids_BT.shape[1] + len(row.ids) for number, row in enumerate(rows)]
        at_N = torch.cat([torch.arange(end - row.count, end) for end, row in zip(ends, rows, strict=True)])
        inputs = {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
        question = TokenQuestion(ids_BT.flatten()[at_N].to(device))
        _, answers_NA = ask_at(self._model, self._model, inputs, (at_N - 1).to(device), question)
        logps = answers_NA[:, 0].double().cpu().split([row.count for row in rows])
        return [-float(part.mean()) for part in logps]


def _is_told(given: float | None, alone: float | None) -> bool:
    """Whether both losses are there; of a damaged model they may be no numbers."""
    return given is not None and alone is not None and math.isfinite(given) and math.isfinite(alone)


class _Row(NamedTuple):
    """Ids that end with a reply, and how many of its tokens are judged, the last ones."""

    ids: list[int]
    count: int
