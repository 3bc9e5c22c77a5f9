"""Proof that optimizer steps train: what is process-wide is as training needs it, and weights move.

accelerate shares one `GradientState` among all trainers of a process. One that was interrupted between the
micro-batches of a step leaves `sync_gradients` False there, and `step()` and `zero_grad()` of every optimizer that
accelerate has prepared then do nothing, while norms, rates and counters go on.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from torch import Tensor, nn

from align.runs.errors import TrainingError
from align.runtime.ranks import any_rank

SEARCHED = 1 << 22  # weights of a tensor among which its witness is sought


def reset_process_state(accelerator: Accelerator | None = None) -> None:
    """Put back what a training that was broken off in this process may have left: accelerate's state of accumulation,
    torch's switch of gradients.

    Args:
        accelerator: of a loop that scales its losses itself: they are not divided by somebody's accumulation steps.
    """
    GradientState()._set_sync_gradients(True)
    if accelerator is not None:
        accelerator.gradient_accumulation_steps = 1
    torch.set_grad_enabled(True)


class StepProof:
    """Whether an optimizer's steps are made, every time, and whether the first of them that should moves a weight.

    A witness is the smallest weight with a gradient, of every trained tensor: where any weight moves, it does. Nothing
    is asked of a step at learning rate 0, of one whose gradients are all zero or below the optimizer's `eps`, which
    damps them to nothing, or of one with an overflow, which a loss scale skips; the next one is looked at then.

    Args:
        optimizer: maybe wrapped by accelerate.
        name: what is trained, for messages.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, name: str):
        self.name, self.proven = name, False
        self._wrapped, self._inner = optimizer, getattr(optimizer, "optimizer", optimizer)
        self.steps = 0  # begun by the optimizer, whoever asked for them
        self._before = 0
        self._witnesses: list[tuple[nn.Parameter, int, Tensor]] = []
        self._inner.register_step_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.steps += 1

    @torch.no_grad()
    def before(self) -> None:
        """Called when the gradients are final, before `step()`."""
        self._before, self._witnesses = self.steps, []
        if self.proven or not all(group["lr"] > 0 for group in self._inner.param_groups):
            return
        for group in self._inner.param_groups:
            eps = group.get("eps", 0.0)  # a pair where it is Adafactor's
            least = eps[0] if isinstance(eps, tuple | list) else eps
            found = (_witness(parameter, least) for parameter in group["params"])
            self._witnesses += [witness for witness in found if witness is not None]
        if self._witnesses and getattr(self._wrapped, "scaler", None) is not None and self._overflows():
            self._witnesses = []  # an optimizer that is fused begins such a step all the same

    @torch.no_grad()
    def after(self) -> None:
        """Called after `step()`, before the gradients are dropped.

        Raises:
            TrainingError: the step was not made, or no weight has moved by it; on every rank.
        """
        if getattr(self._wrapped, "step_was_skipped", False):  # a loss scale's overflow
            return
        if self.steps == self._before:
            raise TrainingError(
                f"the optimizer step of {self.name} was not made, so nothing would be trained: another trainer in this "
                "process was broken off, or is at work; start a new process"
            )
        if self.proven or not any_rank(bool(self._witnesses)):
            return
        moved = any(local(parameter).flatten()[at] != value for parameter, at, value in self._witnesses)
        if not any_rank(moved):
            raise TrainingError(self._why())
        self.proven, self._witnesses = True, []

    def _overflows(self) -> bool:
        gradients = [one.grad for group in self._inner.param_groups for one in group["params"] if one.grad is not None]
        return not all(local(gradient).isfinite().all() for gradient in gradients)

    def _why(self) -> str:
        rate = max(group["lr"] for group in self._inner.param_groups)
        dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter, _, _ in self._witnesses}
        return (
            f"an optimizer step of {self.name} moved no weight ({' and '.join(sorted(dtypes))}, learning_rate "
            f"{rate:g}): raise the learning rate, or train float32 weights"
        )


def local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()


def _witness(parameter: nn.Parameter, least: float) -> tuple[nn.Parameter, int, Tensor] | None:
    """The place and value of the smallest of its weights that has a gradient above `least`."""
    if parameter.grad is None:
        return None
    weights, gradients = (local(tensor).flatten()[:SEARCHED] for tensor in (parameter, parameter.grad))
    sizes = torch.where(gradients.abs() > least, weights.abs(), torch.inf)
    if not len(sizes) or not sizes.min().isfinite():
        return None
    at = int(sizes.argmin())
    return parameter, at, weights[at].clone()
