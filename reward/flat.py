"""Prompts and replies end to end in one row without padding, each prompt once, their attention computed part by part.

A prompt attends to itself, each reply to its prompt and itself: no (T, T) mask is made, nothing that is masked is
computed, and everything outside attention sees exactly the tokens there are. What scores replies, PPO's passes and its
updates lay their rows so; outputs and gradients are those of every reply alone, up to rounding.

The parts travel as a keyword of the model's forward, and `sdpa`, as transformers calls it, computes by them where they
are given: layers that gradient checkpointing computes again get them again, and no config says anything of it. On CPUs
a part is a call of torch's attention. Accelerators are slow at many small calls; there all parts are one call of
`varlen_attn` (float16 and bfloat16), in which a reply's keys are its prompt's and its own, or two padded calls.

Which models take flat rows is known by what they say (`flat_problem`) and then tried (`takes_flat_rows`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from align.runtime.errors import reason_of
from align.runtime.memory import is_out_of_memory
from align.runtime.peft_model import base_of
from reward.layout import TokenGroup, tree_problem

logger = logging.getLogger(__name__)


def flat_batch(groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
    """Groups in one row, as `RewardModel.forward` takes them.

    Returns:
        `input_ids`, `position_ids` (1, T) int64, `attention_mask` (1, T) of ones, `members` (N, T) bool, `rows` and
        `starts` (N,) int64 as of `tree_batch`, and `parts` (S, 2) int64: group and length of each prompt and reply,
        the prompt first in its group.
    """
    ids = [token for group in groups for part in (group.prompt_ids, *group.reply_ids) for token in part]
    parts = Parts([(len(group.prompt_ids), [len(reply) for reply in group.reply_ids]) for group in groups])
    columns_T, (first_N, cut_N, starts_N, ends_N) = torch.arange(len(ids)), parts.replies_4N.unsqueeze(-1)
    in_prompt_NT = (columns_T >= first_N) & (columns_T < cut_N)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": parts.positions_T[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "members": in_prompt_NT | ((columns_T >= starts_N) & (columns_T < ends_N)),
        "rows": torch.zeros(len(starts_N), dtype=torch.int64),
        "starts": starts_N[:, 0],
        "parts": parts.as_tensor(),
    }


def ranges(starts_R: Sequence[int] | Tensor, lengths_R: Sequence[int] | Tensor) -> Tensor:
    """Every start and the numbers that follow it, `lengths_R` of them, one range after the other; int64."""
    starts_R, lengths_R = torch.as_tensor(starts_R), torch.as_tensor(lengths_R)
    before_R = lengths_R.cumsum(0) - lengths_R
    return torch.arange(int(lengths_R.sum())) + (starts_R - before_R).repeat_interleave(lengths_R)


class Parts:
    """What the attention of one forward needs to know of a flat row; made once, used in every layer and model.

    Args:
        groups: length of a prompt and of each reply to it.

    Attributes:
        lengths: of every part (a prompt or a reply), in their order in the row.
        prompts: for each part the index of its prompt among the parts; None: it is one.
        computed_in: the dtypes of the attention that was computed by these parts.
    """

    def __init__(self, groups: Sequence[tuple[int, Sequence[int]]]):
        self.groups = groups
        self.lengths: list[int] = []
        self.prompts: list[int | None] = []
        self.computed_in: set[torch.dtype] = set()
        for prompt, replies in groups:
            at = len(self.lengths)
            self.lengths += [prompt, *replies]
            self.prompts += [None, *[at] * len(replies)]
        self._elsewhere: dict[tuple[str, torch.device], Any] = {}

    @classmethod
    def of(cls, parts_S2: Tensor) -> Parts:
        """Those of `flat_batch`."""
        groups: dict[int, list[int]] = {}
        for group, length in parts_S2.tolist():
            groups.setdefault(group, []).append(length)
        return cls([(prompt, replies) for prompt, *replies in groups.values()])

    def as_tensor(self) -> Tensor:
        """`parts` of `flat_batch`."""
        sizes = [len(replies) + 1 for _, replies in self.groups]
        group_S = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return torch.stack([group_S, torch.tensor(self.lengths)], dim=1)

    @cached_property
    def starts(self) -> list[int]:
        """Where each part begins in the row."""
        return [0, *torch.tensor(self.lengths).cumsum(0)[:-1].tolist()]

    @cached_property
    def replies_4N(self) -> Tensor:
        """Begin and end of each reply's prompt, begin and end of the reply."""
        spans = [
            (self.starts[prompt], self.starts[prompt] + self.lengths[prompt], at, at + length)
            for prompt, at, length in zip(self.prompts, self.starts, self.lengths, strict=True)
            if prompt is not None
        ]
        return torch.tensor(spans, dtype=torch.int64).reshape(-1, 4).T

    @cached_property
    def positions_T(self) -> Tensor:
        """The position ids: a reply's continue from its prompt."""
        return ranges([0 if prompt is None else self.lengths[prompt] for prompt in self.prompts], self.lengths)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """For each reply, which keys of its prompt and itself its tokens see; None for a prompt."""
        made: dict[tuple[int, int], Tensor] = {}

        def mask(length: int, before: int) -> Tensor:
            if (length, before) not in made:
                made[length, before] = torch.ones(length, before + length, dtype=torch.bool).tril(before)
            return made[length, before]

        pairs = zip(self.prompts, self.lengths, strict=True)
        return [None if prompt is None else mask(length, self.lengths[prompt]) for prompt, length in pairs]

    def on(self, device: torch.device, make: Callable[[Parts], Sequence[Any]]) -> Sequence[Any]:
        """What `make` says of these parts, its tensors on `device`; asked for once."""
        key = (make.__name__, device)
        if key not in self._elsewhere:
            found = make(self)
            moved = (one.to(device, non_blocking=True) if isinstance(one, Tensor) else one for one in found)
            self._elsewhere[key] = tuple(moved)
        return self._elsewhere[key]


def flat_inputs(ids_T: Tensor, parts: Parts) -> dict[str, Any]:
    """What a model's forward is given: the parts, and a mask that hides nothing and is read by nobody."""
    columns_11T = torch.ones(1, 1, 1, len(ids_T), dtype=torch.bool, device=ids_T.device)
    positions_1T = parts.on(ids_T.device, _positions)[0][None]
    return {"input_ids": ids_T[None], "position_ids": positions_1T, "attention_mask": columns_11T, "parts": parts}


def _positions(parts: Parts) -> tuple[Tensor]:
    return (parts.positions_T,)


def flat_problem(backbone: nn.Module, accepted: frozenset[str]) -> str | None:
    """Why a backbone takes no flat rows, None where nothing it says of itself speaks against it.

    Args:
        accepted: what its forward takes.
    """
    if problem := tree_problem(backbone.config, accepted):
        return problem
    if not _says_sdpa(backbone):
        return "its attention is not sdpa"
    if not getattr(base_of(backbone), "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return None


def _says_sdpa(backbone: nn.Module) -> bool:
    return backbone.config.get_text_config()._attn_implementation == "sdpa"


def takes_flat_rows(model: nn.Module, backbone: nn.Module, forward: Callable[[dict[str, Any]], Tensor]) -> bool:
    """Whether a model's flat rows are right; tried once on two prompts with two replies each, and said in the log where
    they are not. Three forward passes, which ranks that share a sharded model make together.

    Args:
        model: what the answer is remembered for.
        backbone: what attends inside it.
        forward: inputs -> (B, T, d), what it says at every position: logits or hidden states.
    """
    if model not in _takes_flat:
        accepted = frozenset(inspect.signature(type(base_of(backbone)).forward).parameters)
        problem = flat_problem(backbone, accepted) or _tried(forward, backbone.device)
        _takes_flat[model] = problem is None
        if problem is not None:
            name = type(base_of(model)).__name__
            logger.info("%s: every reply is computed with a prompt of its own, since %s", name, problem)
    return _takes_flat[model] and _says_sdpa(backbone)  # which may be another by now


_takes_flat: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
# what flat rows may differ from padded ones, as a share of what tokens that see one another would do
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


@torch.no_grad()
def _tried(forward: Callable[[dict[str, Any]], Tensor], device: torch.device) -> str | None:
    parts = Parts([(3, [2, 4]), (5, [3, 1])])
    ids_T = torch.arange(1, 1 + sum(parts.lengths), device=device)
    spans = parts.replies_4N.T.tolist()
    rows = [ranges([first, begin], [cut - first, end - begin]).to(device) for first, cut, begin, end in spans]
    width = max(map(len, rows))
    padded_NT = torch.stack([F.pad(ids_T[row], (0, width - len(row)), value=1) for row in rows])
    mask_NT = torch.stack([F.pad(torch.ones_like(ids_T[row]), (0, width - len(row))) for row in rows])
    flat = flat_inputs(ids_T, parts)
    joined = {"input_ids": flat["input_ids"], "attention_mask": torch.ones_like(flat["input_ids"])}
    try:
        alone_NTd = forward({"input_ids": padded_NT, "attention_mask": mask_NT}).double()
        found_Td, ignored_Td = (forward(inputs)[0].double() for inputs in (flat, joined))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return f"its forward takes no flat row ({type(error).__name__}: {reason_of(error)})"
    if not parts.computed_in:
        return "its layers do not hand on which parts there are"
    pairs = list(zip(rows, alone_NTd, strict=True))
    error, seen = (
        max(float((said_Td[row] - alone_Td[: len(row)]).abs().max()) for row, alone_Td in pairs)
        for said_Td in (found_Td, ignored_Td)
    )
    if not error <= max(ROUNDING[dtype] for dtype in parts.computed_in) * seen:
        return f"in a flat row replies change one another (by {error:.2g}; all in sight of all: {seen:.2g})"
    return None


def sdpa_by_parts(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    parts: Parts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' `sdpa`; of the parts of a (1, H, T, d) flat row where they are given."""
    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
    return parts_attention(query, key, value, *args, parts=parts, **kwargs)


AttentionInterface.register("sdpa", sdpa_by_parts)


def parts_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    *,
    parts: Parts,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot products of (1, H, T, d) part by part, as transformers calls its attentions; gives (1, T, H, d).

    Raises:
        ValueError: a bias by position, which is not cut into parts.
    """
    if position_bias is not None:
        raise ValueError("its attention adds a bias by position")
    parts.computed_in.add(value.dtype)
    if query.device.type == "cpu":
        attend = by_part
    elif takes_varlen(value, dropout):
        attend = by_varlen
    else:
        attend = by_padding
    return attend(query, key, value, parts, dropout, scaling).transpose(1, 2).contiguous(), None


def by_part(query: Tensor, key: Tensor, value: Tensor, parts: Parts, dropout: float, scaling: float | None) -> Tensor:
    """One call a part: of a prompt causal without a mask, of a reply with one."""
    queries, keys, values = (states.split(parts.lengths, dim=2) for states in (query, key, value))
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    found = []
    for index, (prompt, mask) in enumerate(zip(parts.prompts, parts.masks, strict=True)):
        own = (keys[index], values[index])
        if prompt is None:
            found.append(F.scaled_dot_product_attention(queries[index], *own, is_causal=True, **options))
            continue
        seen = (torch.cat(pair, dim=2) for pair in zip((keys[prompt], values[prompt]), own, strict=True))
        found.append(F.scaled_dot_product_attention(queries[index], *seen, attn_mask=mask, **options))
    return torch.cat(found, dim=2)


def takes_varlen(value: Tensor, dropout: float) -> bool:
    """Whether torch's variable-length kernel (flash attention) computes this."""
    half, width = value.dtype in (torch.float16, torch.bfloat16), value.shape[-1]
    if not half or width > 256 or width % 8 or dropout or value.device.type != "cuda":
        return False
    return has_varlen() and torch.cuda.get_device_capability(value.device) >= (8, 0)


@cache
def has_varlen() -> bool:
    """Whether this torch has that kernel, in the form that is called here: 2.6 has none, others cannot align the mask
    or group heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "scale", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def by_varlen(query: Tensor, key: Tensor, value: Tensor, parts: Parts, _: float, scaling: float | None) -> Tensor:
    """One call; the causal mask of a part with more keys than queries is aligned at its end."""
    from torch.nn.attention.varlen import varlen_attn

    keys_K, cu_q, cu_k, longest_q, longest_k = parts.on(query.device, varlen_indices)
    queries = query[0].transpose(0, 1).to(value.dtype)
    gathered = (states[0].transpose(0, 1).to(value.dtype).index_select(0, keys_K) for states in (key, value))
    lengths = (cu_q, cu_k, longest_q, longest_k)
    options = {"window_size": (-1, 0), "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    return varlen_attn(queries, *gathered, *lengths, **options).transpose(0, 1)[None]


def varlen_indices(parts: Parts) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """(Columns of the keys of all parts, cumulated lengths of queries and of keys, the longest of each)."""
    starts, lengths, seen = [], [], []
    for prompt, at, length in zip(parts.prompts, parts.starts, parts.lengths, strict=True):
        before = 0 if prompt is None else parts.lengths[prompt]
        starts += [0 if prompt is None else parts.starts[prompt], at]
        lengths += [before, length]
        seen.append(before + length)
    cumulated = (torch.tensor([0, *one]).cumsum(0).int() for one in (parts.lengths, seen))
    return ranges(starts, lengths), *cumulated, max(parts.lengths), max(seen)


def by_padding(
    query: Tensor, key: Tensor, value: Tensor, parts: Parts, dropout: float, scaling: float | None
) -> Tensor:
    """Two calls: the prompts as rows of a batch, and the replies."""
    prompts_GP, replies_NR, keys_NK, mask_N1RK, order_T = parts.on(query.device, padded_indices)
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    options = {"dropout_p": dropout, "scale": scaling}

    def rows(states: Tensor, columns: Tensor) -> Tensor:
        return states[0].index_select(1, columns.flatten()).unflatten(1, columns.shape).transpose(0, 1)

    prompts = (rows(states, prompts_GP) for states in (query, key, value))
    found = [F.scaled_dot_product_attention(*prompts, is_causal=True, **options)]
    if len(replies_NR):
        seen = (rows(query, replies_NR), rows(key, keys_NK), rows(value, keys_NK))
        found.append(F.scaled_dot_product_attention(*seen, attn_mask=mask_N1RK, **options))
    columns = torch.cat([states.transpose(0, 1).flatten(1, 2) for states in found], dim=1)
    return columns.index_select(1, order_T)[None]


def padded_indices(parts: Parts) -> tuple[Tensor, ...]:
    """Columns of each prompt, of each reply, and of a reply's keys (prompt, then reply), padded with any column; the
    replies' mask; and where the tokens of the row lie in the answers, prompts first."""

    def padded(starts_R: Tensor, lengths_R: Tensor) -> tuple[Tensor, Tensor]:
        columns = torch.arange(int(lengths_R.max()) if len(lengths_R) else 0)
        real_RC = columns < lengths_R[:, None]
        return (starts_R[:, None] + columns).masked_fill(~real_RC, 0), real_RC

    first_N, cut_N, begin_N, end_N = parts.replies_4N
    is_prompt = [prompt is None for prompt in parts.prompts]
    starts_S, lengths_S, is_prompt_S = torch.tensor(parts.starts), torch.tensor(parts.lengths), torch.tensor(is_prompt)
    prompts_GP, real_GP = padded(starts_S[is_prompt_S], lengths_S[is_prompt_S])
    replies_NR, real_NR = padded(begin_N, end_N - begin_N)
    before_NP, seen_NP = padded(first_N, cut_N - first_N)
    causal_RR = torch.ones(replies_NR.shape[1], replies_NR.shape[1], dtype=torch.bool).tril()
    own_NRR = causal_RR.expand(len(begin_N), -1, -1)
    mask_NRK = torch.cat([seen_NP[:, None].expand(-1, replies_NR.shape[1], -1), own_NRR], dim=2)
    tokens = torch.cat([prompts_GP[real_GP], replies_NR[real_NR]])
    answers = torch.cat([real_GP.flatten(), real_NR.flatten()]).nonzero()[:, 0]
    order_T = torch.empty_like(answers).scatter_(0, tokens, answers)
    return prompts_GP, replies_NR, torch.cat([before_NP, replies_NR], dim=1), mask_NRK[:, None], order_T
