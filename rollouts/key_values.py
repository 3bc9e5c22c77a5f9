"""Keys and values of sampling, and the attention over them: a prompt's kept once for all its replies, each reply's own
beside it, both where they were first put. Nothing is copied as replies grow, and no key head is repeated for the query
heads of its group: a step's scores against both parts go into one softmax.

A model of transformers takes a `KeyValues` as its cache, and while `attends_here` holds, its attention is `attention`.

Shapes: L layers, P prompts and R replies at work, n places for replies a prompt, H query heads, K key heads, G = H / K,
T columns, D width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, Cache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from align.runtime.devices import index_on
from rollouts.errors import RolloutError

NAME = "prompts_and_replies"
KNOWN = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position"}  # told to an attention; unread by ours


def cache_keyword(model: nn.Module) -> str:
    """What a model's forward calls its cache; transformers 5.24 renamed it, and warns at the old name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@dataclass(frozen=True, slots=True)
class PromptPass:
    """A pass over prompts that lie end to end in one row: runs of (first place among the prompts, how many, tokens of
    each)."""

    runs: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class ReplyPass:
    """A pass over the last token of every reply at work.

    Attributes:
        prompts: at work.
        places: replies a prompt has at most.
        prompt_columns, reply_columns: tokens of the longest of each, the reply's last one included.
        columns_R: where among its own columns each reply's last token stands.
        cells_R: prompt * places + place of each reply; None: they are 0, 1, 2, … and there is one in each cell.
        hidden_RT: columns of prompt and reply, side by side, that are not the reply's; None: all are.
    """

    prompts: int
    places: int
    prompt_columns: int
    reply_columns: int
    columns_R: Tensor
    cells_R: Tensor | None
    hidden_RT: Tensor | None


class KeyValues(Cache):
    """Room for the keys and values of what is at work, taken once.

    Args:
        prompts, replies: at work at most.
        prompt_columns, reply_columns: tokens of the longest of each.

    Attributes:
        now: the pass that the model makes next.
    """

    def __init__(self, layers: int, prompts: int, replies: int, prompt_columns: int, reply_columns: int):
        super().__init__(layers=[])
        self.now: PromptPass | ReplyPass | None = None
        self._count = layers
        self._room = ((prompts, prompt_columns), (replies, reply_columns))
        self._prompts_LPKTD: tuple[Tensor, ...] = ()  # keys, values
        self._replies_LRKTD: tuple[Tensor, ...] = ()
        self._layer = 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keeps a layer's new keys and values (B, K, T, D). What comes back are these alone: `attention` finds the
        others by the key."""
        if not self._prompts_LPKTD:
            self._prompts_LPKTD, self._replies_LRKTD = (
                tuple(self._empty(new, count, columns) for new in (key, value)) for count, columns in self._room
            )
        self._layer = layer_idx
        held = self._replies_LRKTD if isinstance(self.now, ReplyPass) else self._prompts_LPKTD
        for held_LKTD, new in zip(held, (key, value), strict=True):
            self._keep(held_LKTD[layer_idx], new)
        key.key_values = self
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """(B, T, H, D) of queries (B, H, T, D), in the layer that was updated last."""
        if isinstance(self.now, ReplyPass):
            return self._step(self.now, query, query.shape[-1] ** -0.5 if scaling is None else scaling)
        found, grouped = [], query.shape[1] != key.shape[1]
        for parts in zip(*(_runs(states, self.now.runs) for states in (query, key, value)), strict=True):
            out_BHTD = F.scaled_dot_product_attention(*parts, is_causal=True, scale=scaling, enable_gqa=grouped)
            found.append(out_BHTD.transpose(1, 2).flatten(0, 1))
        return torch.cat(found)[None]

    def move_prompts(self, sources: Sequence[int], columns: int) -> None:
        """Puts prompt `sources[i]` at place i, up to that column."""
        _move(self._prompts_LPKTD, sources, columns)

    def move_replies(self, sources: Sequence[int], columns: int) -> None:
        """Puts reply `sources[i]` at place i, up to that column."""
        _move(self._replies_LRKTD, sources, columns)

    def _empty(self, new: Tensor, count: int, columns: int) -> Tensor:
        device = new.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else new.dtype
        shape = (self._count, count, new.shape[1], columns, new.shape[3])
        return torch.zeros(shape, dtype=dtype, device=new.device)  # not `empty`: weight 0 times NaN is NaN

    def _keep(self, held_BKTD: Tensor, new: Tensor) -> None:
        if isinstance(self.now, ReplyPass):
            rows_R = torch.arange(len(new), device=new.device)
            held_BKTD[rows_R, :, self.now.columns_R] = new[:, :, 0].to(held_BKTD.dtype)
            return
        for part, (first, count, length) in zip(_runs(new, self.now.runs), self.now.runs, strict=True):
            held_BKTD[first : first + count, :, :length] = part

    def _step(self, now: ReplyPass, query_RH1D: Tensor, scaling: float) -> Tensor:
        rows, layer = len(query_RH1D), self._layer
        keys_PKTD, values_PKTD = (held[layer, : now.prompts, :, : now.prompt_columns] for held in self._prompts_LPKTD)
        keys_RKTD, values_RKTD = (held[layer, :rows, :, : now.reply_columns] for held in self._replies_LRKTD)
        query_RKGD = (query_RH1D * scaling).to(keys_RKTD.dtype).view(rows, keys_RKTD.shape[1], -1, query_RH1D.shape[3])
        with_prompts = _by_reply(_by_prompt(query_RKGD, now) @ keys_PKTD.transpose(-1, -2), now)
        scores_RKGT = torch.cat([with_prompts, query_RKGD @ keys_RKTD.transpose(-1, -2)], dim=-1)
        if now.hidden_RT is not None:
            scores_RKGT.masked_fill_(now.hidden_RT[:, None, None], -torch.inf)
        wide = torch.promote_types(scores_RKGT.dtype, torch.float32)
        weights_RKGT = scores_RKGT.softmax(-1, dtype=wide).to(values_RKTD.dtype)
        prompt_weights, reply_weights = weights_RKGT.split([now.prompt_columns, now.reply_columns], dim=-1)
        out_RKGD = _by_reply(_by_prompt(prompt_weights, now) @ values_PKTD, now)
        out_RKGD = out_RKGD + reply_weights @ values_RKTD
        return out_RKGD.reshape(rows, 1, -1, out_RKGD.shape[-1]).to(query_RH1D.dtype)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **told: Any,
) -> tuple[Tensor, None]:
    """Scaled dot products as transformers calls its attentions: queries (B, H, T, D) to (B, T, H, D).

    Raises:
        RolloutError: the model asks for more than plain causal attention, or hands on other keys than the cache gave.
    """
    if (cache := getattr(key, "key_values", None)) is None:
        raise RolloutError("its attention gets other keys than the cache gave")
    unknown = [name for name, given in told.items() if given is not None and given is not False and name not in KNOWN]
    if attention_mask is not None or unknown:
        raise RolloutError(f"its attention is told {', '.join(unknown) or 'a mask'}")
    return cache.attend(query, key, value, scaling), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def attends_here(model: nn.Module) -> Iterator[None]:
    """The attention of that model of transformers is `attention` for the while. Its parts read a config of their own
    then: another model that was built of the same one, and is trained in another thread, sees nothing of it."""
    shared = model.config.get_text_config(decoder=True)
    own = copy(shared)
    own._attn_implementation = NAME
    holders = [module for module in model.modules() if vars(module).get("config") is shared]
    for module in holders:
        module.config = own
    try:
        yield
    finally:
        for module in holders:
            module.config = shared


def _runs(states_1HTD: Tensor, runs: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """(count, H, length, D) of each run of prompts in the row."""
    parts = states_1HTD[0].split([count * length for _, count, length in runs], dim=1)
    shapes = [(count, length) for _, count, length in runs]
    return [part.unflatten(1, shape).transpose(0, 1) for part, shape in zip(parts, shapes, strict=True)]


def _by_prompt(states_RKGX: Tensor, now: ReplyPass) -> Tensor:
    """(P, K, n * G, X): the replies to one prompt together, so that its keys are read once for all of them."""
    if now.cells_R is not None:
        cells = states_RKGX.new_zeros(now.prompts * now.places, *states_RKGX.shape[1:])
        states_RKGX = cells.index_copy_(0, now.cells_R, states_RKGX)
    return states_RKGX.unflatten(0, (now.prompts, now.places)).transpose(1, 2).flatten(2, 3)


def _by_reply(states_PKMX: Tensor, now: ReplyPass) -> Tensor:
    """The way back: (R, K, G, X) of (P, K, n * G, X)."""
    cells = states_PKMX.unflatten(2, (now.places, -1)).transpose(1, 2).flatten(0, 1)
    return cells if now.cells_R is None else cells.index_select(0, now.cells_R)


def _move(held: Sequence[Tensor], sources: Sequence[int], columns: int) -> None:
    moved = [(to, source) for to, source in enumerate(sources) if to != source]
    if not moved or not held:
        return
    to, source = (index_on(held[0].device, places) for places in zip(*moved, strict=True))
    for held_LBKTD in held:
        held_LBKTD[:, to, :, :columns] = held_LBKTD[:, source, :, :columns]
