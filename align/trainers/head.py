"""Questions to the LM head that never hold all of its logits.

The logits of a micro-batch, tokens x vocabulary, are the largest tensor of a step (2,048 tokens of a vocabulary of
152,000 are 1.2 GiB in float32), and so is their gradient. What training asks of them is a number or three a token. So
the head itself answers: while the model is called, its forward takes the hidden states in blocks, makes a block's
logits, asks, and keeps the answers. All happens inside the model's own forward, so that DDP, FSDP and autocast see one
pass as ever. A plain linear head that is asked a `TokenQuestion` answers as `functional.linear_logprobs` says; any
other question, and any other head (with adapters, quantised), makes the logits of a block again in the backward pass,
and where there are fewer than a block gives them as if this file were not there.

Some architectures change logits behind the head (soft-capping, scales), a subclass may too. Then what comes out of the
model is not what the head answered; that is looked at once a model, and such a one gives whole logits from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from align.functional.linear_logprobs import TokenQuestion, linear_logprobs
from align.recipe.batch import BLOCK_LOGITS
from align.runtime.peft_model import base_of

BEHIND_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")

Question = Callable[[Tensor, slice], Tensor]
_wants_all: WeakSet[nn.Module] = WeakSet()  # models that change logits behind the head
_gives_answers: WeakSet[nn.Module] = WeakSet()  # models that were seen not to


def ask_head(
    model: nn.Module, raw_model: nn.Module, inputs: dict[str, Any], num_rows: int, ask: Question
) -> tuple[Any, Tensor]:
    """One forward pass, and the answers to a question about its logits.

    Args:
        model: what is called, maybe wrapped.
        raw_model: the causal LM inside. Where the head computes differently from time to time (roles of one backbone),
            its `second_pass()` gives the context in which to make logits again.
        inputs: what `forward` takes.
        num_rows: how many rows of logits the head makes.
        ask: (logits_nV, at) -> answers_nA: about the rows `at` of all rows, flattened; any float dtype. A
            `TokenQuestion` is answered with the fewest products.

    Returns:
        The model's output (its `logits` hold the answers where the head gave them) and answers_NA.
    """
    head = head_of(raw_model)
    answers = head is not None and (_fused(head, ask) is not None or not _is_small(raw_model, num_rows))
    if answers and not _changes_logits(raw_model):
        with _answering(head, block_rows(raw_model), ask, getattr(raw_model, "second_pass", nullcontext)) as given:
            output = model(**inputs, use_cache=False)
        if not given:  # another layer made the logits
            return output, _whole(output, ask)
        if _gives(raw_model, output.logits, given[-1]):
            return output, output.logits.flatten(0, -2)
        _wants_all.add(raw_model)
    output = model(**inputs, use_cache=False)
    return output, _whole(output, ask)


def ask_in_blocks(
    make: Callable[[Tensor], Tensor],
    states_Nd: Tensor,
    num_rows: int,
    ask: Question,
    second_pass: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """answers_NA of `ask(make(states), at)`, `num_rows` rows at a time; a block is made again in the backward pass,
    inside `second_pass()`."""
    total = states_Nd.shape[0]
    blocks = [slice(start, min(start + num_rows, total)) for start in range(0, total, num_rows)]
    if len(blocks) < 2:
        return ask(make(states_Nd), slice(0, total))

    def answer(states_nd: Tensor, at: slice) -> Tensor:
        return ask(make(states_nd), at)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), second_pass()

    if not torch.is_grad_enabled():
        return torch.cat([answer(states_Nd[at], at) for at in blocks])
    return torch.cat([checkpoint(answer, states_Nd[at], at, use_reentrant=False, context_fn=contexts) for at in blocks])


def unwrapped(model: nn.Module) -> nn.Module:
    """What DDP wraps, where it does."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def rows_at_once(vocabulary: int) -> int:
    """Rows of a block."""
    return max(1, BLOCK_LOGITS // max(1, vocabulary))


def head_of(raw_model: nn.Module) -> nn.Module | None:
    """The layer that makes the logits; None where the model does not name it."""
    plain = base_of(raw_model)
    return plain.get_output_embeddings() if hasattr(plain, "get_output_embeddings") else None


def _vocabulary(raw_model: nn.Module) -> int:
    config = raw_model.config
    return (config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size


def block_rows(raw_model: nn.Module) -> int:
    """Rows of logits that a block of this model's holds; no limit for a model that does not say its vocabulary."""
    return rows_at_once(_vocabulary(raw_model)) if hasattr(raw_model, "config") else sys.maxsize


def _is_small(raw_model: nn.Module, num_rows: int) -> bool:
    return num_rows <= block_rows(raw_model)


def _changes_logits(raw_model: nn.Module) -> bool:
    values = (getattr(raw_model.config, name, None) for name in BEHIND_THE_HEAD)
    return raw_model in _wants_all or any(value not in (None, 1, 1.0) for value in values)


def _whole(output: Any, ask: Question) -> Tensor:
    logits_NV = output.logits.flatten(0, -2)
    return ask(logits_NV, slice(0, len(logits_NV)))


def _fused(head: nn.Module, ask: Question) -> TokenQuestion | None:
    """What a plain linear head is asked, maybe as the `question` of something about chosen rows; None for all else."""
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    asked = getattr(ask, "question", ask)
    return asked if plain and isinstance(asked, TokenQuestion) else None


def _gives(raw_model: nn.Module, found: Tensor, given: Tensor) -> bool:
    """Whether the model gives what its head answered."""
    if found is given or (raw_model in _gives_answers and found.shape == given.shape):
        return True
    alike = found.shape == given.shape
    alike = alike and torch.allclose(found.detach(), given.detach().to(found.dtype), rtol=0, atol=0, equal_nan=True)
    if alike:
        _gives_answers.add(raw_model)
    return alike


@contextmanager
def _answering(
    head: nn.Module, num_rows: int, ask: Question, second_pass: Callable[[], AbstractContextManager]
) -> Iterator[list[Tensor]]:
    """While it holds, `head` gives answers in place of logits; the list has what it gave last."""
    make, given, fused = head.forward, [], _fused(head, ask)

    def answer(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        flat_Nd = states.flatten(0, -2)
        if fused is not None and len(flat_Nd) == len(fused.ids_N):
            found = linear_logprobs(flat_Nd, head.weight, head.bias, fused, num_rows)
        else:
            found = ask_in_blocks(lambda part: make(part, *args, **kwargs), flat_Nd, num_rows, ask, second_pass)
        given[:] = [found.unflatten(0, states.shape[:-1])]
        return given[0]

    own = "forward" in vars(head)
    head.forward = answer
    try:
        yield given
    finally:
        if own:
            head.forward = make
        else:
            del head.forward
