"""A card that is not there: inside `pretended_card()` tensors say that they are on one and hold their values here.

Such a tensor is an `OnCard`, a wrapper whose values lie in an ordinary tensor. Its device, `card:0`, is torch's own
for backends that live elsewhere (PrivateUse1), so nothing above knows it from a card. A dispatch mode sees every
operation below autograd, and makes of a factory's device, of `.to` and of whatever comes of an `OnCard` another one;
values, gradients and seeds are those of the CPU, so a whole iteration runs and can be compared with one there. What a
card would not take is an error: an operation on a tensor of the card and one of the host that has a dimension (torch
takes scalars), an index of the host's (which torch takes, and carries over at every use), a draw on the card from the
host's generator. What makes the host wait for the card is noted (`Card.waits`), with the line of ours that asked.

torch's FakeTensor has such devices without values; training reads values (guards, lengths, metrics), and ends there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.attention.varlen  # names its kernels
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Module:
    """What torch asks of a backend's module, `torch.card`; it is there inside `pretended_card()` alone."""

    _initialized = False
    here = False

    def is_available(self) -> bool:
        return self.here

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return False

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_MODULE = _Module()
CARD = torch.device("privateuseone", 0)  # "card" once there is one
HOST = torch.device("cpu")
OURS = ("/align/", "/reward/", "/rollouts/")
aten = torch.ops.aten
CARRIES = {aten._to_copy.default, aten.copy_.default}
WAITS = {
    aten._local_scalar_dense.default: "a value is read",
    aten.equal.default: "a value is read",
    aten.nonzero.default: "a shape is read",
    aten.masked_select.default: "a shape is read",
    aten._unique2.default: "a shape is read",
    aten.unique_consecutive.default: "a shape is read",
    aten.bincount.default: "a shape is read",
}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten.repeat_interleave.Tensor}
LOOKED_AT = {*WAITS, *CARRIES, *INDEXED}


class ForeignTensorError(RuntimeError):
    """What a card would refuse, or would carry over from the host at every call."""


class OnCard(Tensor):
    """A tensor on `CARD`; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        options = {"dtype": held.dtype, "layout": held.layout, "device": CARD}
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), **options
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """As a list; torch's own refuses subclasses, and its numbers ask a driver first."""
        return self.cpu().tolist()

    def item(self) -> Any:
        return aten._local_scalar_dense(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    __index__ = __int__

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ForeignTensorError(f"{func}: a tensor of the card outlived it")


class Card(TorchDispatchMode):
    """Computes what is on the card.

    Attributes:
        waits: how often the host waited for the card, by (line of ours, why).
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [*_leaves(args), *_leaves(kwargs.values())]
        asked = next((one for one in leaves if isinstance(one, torch.device)), None)
        tensors = [one for one in leaves if isinstance(one, Tensor)]
        on_card = [one for one in tensors if isinstance(one, OnCard)]
        to_card = asked.type == CARD.type if asked else bool(on_card)
        if not on_card and not to_card:
            return func(*args, **kwargs)
        if func not in CARRIES:
            strangers = [tuple(one.shape) for one in tensors if not isinstance(one, OnCard) and one.dim()]
            if strangers and on_card:
                raise ForeignTensorError(f"{func}: a tensor of the host {strangers[0]} beside the card's, {_line()}")
            if to_card and any(isinstance(one, torch.Generator) for one in leaves):
                raise ForeignTensorError(f"{func}: a draw on the card from the host's generator, {_line()}")
        if func in LOOKED_AT and (why := _why_it_waits(func, args, kwargs, to_card)):
            self.waits[_line(), why] += 1
        known = {id(one.held if isinstance(one, OnCard) else one): one for one in tensors}
        given = {name: _each(_here, one) for name, one in kwargs.items() if name != "non_blocking"}
        found = STANDS_IN.get(func, func)(*_each(_here, args), **given)

        def whole(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            return known[id(one)] if id(one) in known else OnCard(one) if to_card else one

        return _each(whole, found)


def _leaves(values: Any) -> Iterator[Any]:
    for one in values:
        if isinstance(one, list | tuple):
            yield from _leaves(one)
        else:
            yield one


def _each(change: Any, value: Any) -> Any:
    return type(value)(_each(change, one) for one in value) if isinstance(value, list | tuple) else change(value)


def _here(one: Any) -> Any:
    return one.held if isinstance(one, OnCard) else HOST if isinstance(one, torch.device) else one


def _why_it_waits(func: Any, args: Any, kwargs: Any, to_card: bool) -> str | None:
    if func in WAITS:
        return WAITS[func]
    if func in CARRIES:
        source, target = args[0], to_card
        if func is aten.copy_.default:
            source, target = args[1], isinstance(args[0], OnCard)
        if not target:
            return "values come to the host"
        at_once = kwargs.get("non_blocking") or args[2:3] == (True,)
        return None if isinstance(source, OnCard) or at_once else "values are carried to the card"
    if func is aten.repeat_interleave.Tensor:
        return None if kwargs.get("output_size") else "a shape is read"
    masks = any(one is not None and one.dtype == torch.bool for one in args[1])
    return "a shape is read" if masks else None


def _line() -> str:
    """The innermost line of ours."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in OURS) and "site-packages" not in name and "/tests/" not in name:
            at = max(name.rfind(part) for part in OURS)
            return f"{name[at + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    scale: float | None,
    window: Any,
    enable_gqa: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """What torch's kernel of varied lengths says, sequence by sequence; the mask is aligned at its end."""
    assert is_causal and cu_q.dtype == cu_k.dtype == torch.int32 and cu_q[-1] == len(query) and cu_k[-1] == len(key)
    spans = list(zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True))
    assert max_q == max(q for q, _ in spans) and max_k == max(k for _, k in spans)
    rows = [states.transpose(0, 1)[None] for states in (query, key, value)]
    parts = zip(
        rows[0].split([q for q, _ in spans], dim=2),
        *(one.split([k for _, k in spans], dim=2) for one in rows[1:]),
        strict=True,
    )
    found = [
        F.scaled_dot_product_attention(
            *part, attn_mask=torch.ones(q, k, dtype=torch.bool).tril(k - q), scale=scale, enable_gqa=enable_gqa
        )
        for part, (q, k) in zip(parts, spans, strict=True)
    ]
    nothing = torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)
    return torch.cat(found, dim=2)[0].transpose(0, 1).contiguous(), *nothing


def _varlen_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng: Tensor,
    scale: float | None = None,
    window: Any = None,
) -> tuple[Tensor, ...]:
    def gradients() -> tuple[Tensor, ...]:
        given = [states.detach().requires_grad_() for states in (query, key, value)]
        grouped = query.shape[1] != key.shape[1]
        found = _varlen(*given, cu_q, cu_k, max_q, max_k, is_causal, scale, window, grouped)[0]
        return torch.autograd.grad(found, given, grad)

    with ThreadPoolExecutor(1) as elsewhere:  # here nothing is recorded for autograd
        return elsewhere.submit(gradients).result()


STANDS_IN: dict[Any, Any] = {
    torch.ops.torch_attn._varlen_attn.default: _varlen,
    torch.ops.torch_attn._varlen_attn_backward.default: _varlen_backward,
}


@contextmanager
def pretended_card() -> Iterator[Card]:
    """accelerate and transformers choose the card."""
    if not hasattr(torch, "card"):  # for good, but it is there in here alone
        _setup_privateuseone_for_python_backend("card", _MODULE)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` is made here, and carried over as by `to`
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else `module.to` makes other parameters
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with (
            mock.patch.object(_MODULE, "here", True),
            mock.patch.dict("os.environ", {"ACCELERATE_TORCH_DEVICE": str(CARD)}),
            torch.autograd.set_multithreading_enabled(False),  # its threads for a card begin with the first backward
            Card() as card,
        ):
            yield card
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        AcceleratorState._reset_state(reset_partial_state=True)
