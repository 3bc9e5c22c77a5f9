"""The MLP of a model's last layer, computed only where somebody reads what comes out of it.

Attention mixes tokens, an MLP does not. Behind the last attention a token's state reaches no other one, so where the
head is asked about some tokens alone (labels, a reply's states, the end token of a reward model), the MLP of the others
is thrown away. It is the largest part of a layer; in its place there they get zeros, which nobody reads.

Left as it is: a layer whose MLP is not found by the name that transformers' decoders have, one that routes tokens to
experts (its routing is counted over all tokens), and one that gradient checkpointing computes again, which is later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.runtime.peft_model import base_of
from reward.checkpointing import is_checkpointing

FEWEST = 8  # of very few rows BLAS adds up products in an order that depends on where the weights lie in memory


@contextmanager
def last_mlp_only_at(model: nn.Module, shape: torch.Size, flat_N: Tensor) -> Iterator[None]:
    """While it holds, a forward pass of `model` gives states that are right at some positions alone.

    Args:
        model: a causal LM or its body.
        shape: (B, T) of the pass; another pass is whole.
        flat_N: the positions that are read, as flat indices into (B, T); one may be there twice.
    """
    mlp = _last_mlp(base_of(model))
    is_read = torch.zeros(shape.numel(), dtype=torch.bool, device=flat_N.device).index_fill_(0, flat_N, True)
    at_R = is_read.nonzero()[:, 0]
    if mlp is None or not FEWEST <= len(at_R) < shape.numel():
        yield
        return
    whole = mlp.forward

    def at_some(states: Tensor) -> Tensor:
        if states.shape[:-1] != shape:
            return whole(states)
        at = at_R.to(states.device)
        found = whole(states.flatten(0, 1).index_select(0, at)[None])[0]
        return found.new_zeros(shape.numel(), found.shape[-1]).index_copy(0, at, found).unflatten(0, shape)

    own = "forward" in vars(mlp)
    mlp.forward = at_some
    try:
        yield
    finally:
        if own:
            mlp.forward = whole
        else:
            del mlp.forward


def _last_mlp(plain: nn.Module) -> nn.Module | None:
    layers = getattr(getattr(plain, "base_model", plain), "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if mlp is None or is_checkpointing(plain):
        return None
    return None if any("expert" in name or "router" in name for name, _ in mlp.named_modules()) else mlp
