"""The forward pass of SFT: logits only where a label is judged, and packed samples that do not see one another.

Logits. The LM head is by far the widest layer; prompts have no loss, so most of its work would be thrown away. A hook
hands it only the hidden states whose next label counts, and the last layer's MLP computes no others
(`reward.last_layer`). The hook sits on the head itself, so that the pass still goes through the wrapped model (DDP,
FSDP, PEFT) and through whatever follows the head (soft-capping, logit scales), which works element by element in every
architecture. A model that does not name its head, or calls it in another way, gives all logits and the same rows are
taken out of them. Even the chosen logits are not held all at once (`head`).

Rows. Where the model takes flat rows (`reward.flat`: sdpa), the samples of all rows, packed or not, stand end to end in
one row without padding, and attention is computed sample by sample. Other models get rows as they were collated; and if
these are packed, what each attention cannot misread (position ids next to an all-ones mask, or with a cache, attend
across samples on a CPU, silently):

    sdpa               an explicit bool mask (B, 1, T, T), block-diagonal and causal
    eager              the same as an additive float mask (a bool mask would be added as 0 and 1)
    flash_attention_2  the samples of all rows in one row of their own, without padding and mask: position ids that
                       start over select its variable-length kernel, which takes them from a batch of one row alone

and always positions that start over, and no cache. `prove_packing` tries it on the very model before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.data.packing import PackingError
from align.trainers.head import Question, ask_head, head_of
from reward.flat import Parts, flat_inputs, takes_flat_rows
from reward.last_layer import last_mlp_only_at

LEAK = 0.1  # share of what visible neighbours would do to the logits; rounding in bfloat16 stays well below


def ask_at(
    model: nn.Module, raw_model: nn.Module, inputs: dict[str, Tensor], flat_N: Tensor, ask: Question
) -> tuple[Any, Tensor]:
    """One forward pass, and the answers to a question about the logits at some positions.

    Args:
        model: what is called, maybe wrapped.
        raw_model: the causal LM inside.
        inputs: `input_ids` (B, T) and what else `forward` takes.
        flat_N: positions as flat indices into (B, T).
        ask: (logits_nV, at) -> answers_nA, about the rows `at` of the N (`align.trainers.head`).

    Returns:
        The model's output and answers_NA.

    Raises:
        ValueError: the model gives logits of another length than its input (virtual tokens of prompt tuning).
    """
    shape = inputs["input_ids"].shape
    chosen = _Chosen(ask, shape, flat_N)
    with chosen.by(head_of(raw_model)), last_mlp_only_at(raw_model, shape, flat_N):
        return ask_head(model, raw_model, inputs, len(flat_N), chosen)


@dataclass(slots=True)
class _Chosen:
    """A question about some positions of (B, T); `is_given`: whether the head was handed their states alone."""

    question: Question
    shape: torch.Size
    flat_N: Tensor
    is_given: bool = False

    def __call__(self, logits: Tensor, at: slice) -> Tensor:
        if self.is_given:
            return self.question(logits, at)
        if len(logits) != self.shape.numel():
            raise ValueError(f"the model gives {len(logits)} rows of logits for input_ids of shape {tuple(self.shape)}")
        return self.question(logits.index_select(0, self.flat_N), slice(0, len(self.flat_N)))

    @contextmanager
    def by(self, head: nn.Module | None) -> Iterator[None]:
        """While it holds, `head` is handed their states alone."""
        handle = head.register_forward_pre_hook(self._select) if head is not None else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def _select(self, head: nn.Module, args: tuple) -> tuple | None:
        if not args or args[0].dim() != 3 or args[0].shape[:2] != self.shape:
            return None
        self.is_given = True
        return (args[0].flatten(0, 1).index_select(0, self.flat_N), *args[1:])


def positions(segments_BT: Tensor) -> Tensor:
    """Position of every token inside its sample, int64, from 0; 0 in the padding (segment 0)."""
    at_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    began_BT = torch.where(starts_BT, at_T, 0).cummax(dim=1).values
    return torch.where(segments_BT != 0, at_T - began_BT, 0)


def block_mask(segments_BT: Tensor) -> Tensor:
    """Bool (B, 1, T, T), True = may attend: the same sample, not later. Padding sees padding alone: a row of the mask
    without any True would make NaN of its softmax."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same_BTT.tril().unsqueeze(1)


def packed_inputs(batch: dict[str, Tensor], implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What `forward` is called with for a packed batch.

    Args:
        batch: `input_ids` and `segments`, (B, T); for flash attention already flat (`flattened`).
        implementation: the model's attention implementation.
        dtype: of the additive mask of eager attention: the model's own.

    Raises:
        PackingError: an attention implementation for which no such call is known.
    """
    segments_BT = batch["segments"]
    inputs = {"input_ids": batch["input_ids"], "position_ids": positions(segments_BT)}
    if implementation == "sdpa":
        return inputs | {"attention_mask": block_mask(segments_BT)}
    if implementation == "eager":
        allowed = block_mask(segments_BT)
        closed = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return inputs | {"attention_mask": closed.masked_fill(~allowed, torch.finfo(dtype).min)}
    if implementation == "flash_attention_2":
        return inputs
    raise PackingError(
        f"packing is not known to be correct with attn_implementation '{implementation}': "
        "use sdpa (or eager, or flash_attention_2 on CUDA), or switch packing off"
    )


def flattened(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """`input_ids` and `segments` of all rows without padding in a batch of one row, (1, N), samples numbered on; and
    where in it each real token of the flattened (B, T) lies."""
    segments_BT = batch["segments"]
    real_BT = segments_BT != 0
    offset_B1 = (segments_BT.amax(dim=1).cumsum(0) - segments_BT.amax(dim=1)).unsqueeze(1)
    flat = {"input_ids": batch["input_ids"][real_BT][None], "segments": (segments_BT + offset_B1)[real_BT][None]}
    return flat, real_BT.flatten().cumsum(0) - 1


def takes_flat(model: nn.Module, raw_model: nn.Module) -> bool:
    """Whether `flat_samples` are right for a model; tried once, without dropout, and in passes of the wrapped `model`,
    which ranks that share a sharded one make together."""
    training = model.training
    model.eval()
    try:
        return takes_flat_rows(raw_model, raw_model, lambda inputs: model(**inputs, use_cache=False).logits)
    finally:
        model.train(training)


def flat_samples(batch: dict[str, Tensor]) -> tuple[dict[str, Any], Tensor]:
    """What `forward` is called with for the samples of a batch end to end in one row without padding.

    Args:
        batch: `input_ids`, and `attention_mask` or, where rows are packed, `segments`; each (B, T).

    Returns:
        The call's keywords, and where in that row each real token of the flattened (B, T) lies.
    """
    segments_BT = batch["segments"] if "segments" in batch else batch["attention_mask"].long()
    flat, place = flattened({"input_ids": batch["input_ids"], "segments": segments_BT})
    _, lengths = torch.unique_consecutive(flat["segments"], return_counts=True)
    return flat_inputs(flat["input_ids"][0], Parts([(length, ()) for length in lengths.tolist()])), place


def attention_of(model: nn.Module) -> str:
    """The attention implementation that the model's config names."""
    return getattr(model.config, "_attn_implementation", None) or "eager"


@torch.no_grad()
def prove_packing(model: nn.Module, max_length: int) -> None:
    """Compare packed samples with the same samples alone, on this model; the model is left as it was.

    Raises:
        PackingError: unknown attention, a sliding window shorter than a packed row, or logits that packing changes
            (recurrent layers, code that ignores the mask).
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_length:
        raise PackingError(
            f"this model looks back {window} tokens at most, which packed rows of {max_length} tokens cannot respect: "
            "lower max_length or switch packing off"
        )
    implementation, device = attention_of(model), next(model.parameters()).device
    ids = torch.arange(3, 19, device=device) % config.vocab_size
    first, second, training = ids[:7], ids[7:], model.training
    packed = {"input_ids": ids[None], "segments": torch.tensor([[1] * 7 + [2] * 9], device=device)}
    model.eval()
    try:
        inputs = packed_inputs(packed, implementation, model.dtype)
        try:
            together = model(**inputs, use_cache=False).logits[0].float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise PackingError(f"this model does not take packed samples ({error}): switch packing off") from error
        joined = model(input_ids=ids[None], use_cache=False).logits[0, 7:].float()
        alone = [model(input_ids=part[None], use_cache=False).logits[0].float() for part in (first, second)]
    finally:
        model.train(training)
    leak = float((together - torch.cat(alone)).abs().max())
    visible = float((joined - alone[1]).abs().max())
    if not leak <= LEAK * visible:
        raise PackingError(
            f"packed samples change one another's logits in this model (by {leak:.2g}; plain neighbours: "
            f"{visible:.2g}), so packing would train on wrong contexts: switch packing off"
        )
