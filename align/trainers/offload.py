"""PPO's idle parts wait in the host's memory (`ppo.offload`), and are on the accelerator for their own work alone.

Reference and reward models are frozen: their copy in the host's memory stays, so that only the way to the accelerator
costs time. Moments of an optimizer are changed by every step, and go both ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align.runs.errors import LaunchError
from reward.combined import leaves
from reward.protocol import Reward

logger = logging.getLogger(__name__)


class Shelf:
    """The way between an accelerator and the host's memory."""

    def __init__(self, device: torch.device):
        self.device = device

    def up(self, tensor: Tensor) -> Tensor:
        """`tensor` on the accelerator."""
        return tensor.to(self.device)

    def down(self, tensor: Tensor) -> Tensor:
        """`tensor` in the host's memory."""
        return tensor.to("cpu")


class Resting:
    """A frozen module that is on the accelerator inside `with` alone; may be entered again inside."""

    def __init__(self, module: nn.Module, shelf: Shelf):
        self.tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        self.kept = [shelf.down(tensor.data) for tensor in self.tensors]
        self.shelf, self.depth = shelf, 0
        self._lie(self.kept, "cpu")

    def __enter__(self) -> None:
        if self.depth == 0:
            self._lie([self.shelf.up(tensor) for tensor in self.kept], self.shelf.device)
        self.depth += 1

    def __exit__(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._lie(self.kept, "cpu")

    def _lie(self, values: Sequence[Tensor], device: torch.device | str) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data = value
            scales = getattr(tensor, "quant_state", None)  # of 4-bit weights
            if scales is not None:
                scales.to(device)


class WaitingMoments:
    """The moments of an optimizer, which are on the accelerator inside `with` alone."""

    def __init__(self, optimizer: Any, shelf: Shelf):
        self.optimizer, self.shelf = optimizer, shelf
        self.away: list[tuple[dict[str, Any], str]] = []

    def __enter__(self) -> None:
        for state, name in self.away:
            state[name] = self.shelf.up(state[name])

    def __exit__(self, *_: Any) -> None:
        self.put_away()

    def put_away(self) -> None:
        """After a step, or when moments were loaded; what never was on the accelerator, and counters, stay."""
        self.away = [
            (state, name)
            for parameter, state in self.optimizer.state.items()
            for name, value in state.items()
            if isinstance(value, Tensor) and value.ndim and value.device == parameter.device
        ]
        for state, name in self.away:
            state[name] = self.shelf.down(state[name])


class Offload:
    """What `ppo.offload` names; nothing on a CPU, which has no other memory.

    Raises:
        LaunchError: models that FSDP2 shards.
    """

    def __init__(self, parts: Sequence[str], accelerator: Accelerator):
        if parts and accelerator.is_fsdp2:
            raise LaunchError(
                "ppo.offload moves whole models, and FSDP2 shards them: leave it out, and launch with "
                "--fsdp_offload_params true"
            )
        if parts and not has_own_memory(accelerator.device):
            logger.info("ppo.offload: this run computes on the CPU, where everything is in the host's memory anyway")
            parts = ()
        self.parts, self.shelf = frozenset(parts), Shelf(accelerator.device)
        self.resting: dict[str, list[Resting]] = {}

    def rest(self, part: str, *modules: nn.Module) -> None:
        """Put the models of `part` away, where the recipe says so.

        Raises:
            LaunchError: roles of a shared backbone, which the policy computes with too.
        """
        if part not in self.parts:
            return
        if any(hasattr(inner, "peft_model") for module in modules for inner in module.modules()):
            raise LaunchError(
                f"ppo.offload: the {part} is a role of the policy's own backbone, there is nothing to offload: leave "
                "it out, or set ppo.shared_backbone to false"
            )
        if not modules:
            logger.info("ppo.offload: there is no %s model here", part)
        self.resting[part] = [Resting(module, self.shelf) for module in modules]

    @contextmanager
    def here(self, part: str) -> Iterator[None]:
        """The models of `part` are on the accelerator for the while."""
        with ExitStack() as stack:
            for one in self.resting.get(part, ()):
                stack.enter_context(one)
            yield

    def moments(self, optimizer: Any) -> WaitingMoments | None:
        """The optimizer's moments where they are to wait, else None."""
        return WaitingMoments(optimizer, self.shelf) if "optimizer" in self.parts else None


def has_own_memory(device: torch.device) -> bool:
    """Whether tensors there are not in the host's memory."""
    return device.type not in ("cpu", "mps")


def reward_models(*rewards: Reward | None) -> list[nn.Module]:
    """The models that rewards ask, those of their parts included."""
    plain = [leaf for reward in rewards if reward is not None for leaf in leaves(reward)]
    models = [getattr(leaf, "model", None) for leaf in plain]
    return list({id(model): model for model in models if isinstance(model, nn.Module)}.values())
