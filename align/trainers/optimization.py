"""One optimizer, one schedule and one gradient clip for each trained model of PPO."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from align.functional.masked import wide
from align.recipe.fields import OptimSection
from align.recipe.model_section import rounded_away
from align.runs.errors import LaunchError, PrecisionError
from align.runs.proof import StepProof
from align.runtime.packages import require_package
from align.runtime.peft_model import base_of
from align.runtime.ranks import is_main
from align.trainers import sharding
from align.trainers.offload import Offload

logger = logging.getLogger(__name__)

NO_DECAY = ("bias", "norm")


def make_optimizer(module: nn.Module, section: OptimSection) -> torch.optim.Optimizer:
    """The section's optimizer over the parameters that need gradients; biases and norms are not decayed, as in
    `transformers.Trainer`.

    Raises:
        MissingPackageError: an optimizer of bitsandbytes, which is not installed.
    """
    named = [(name.lower(), parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in named if not any(part in name for part in NO_DECAY)]
    others = [parameter for name, parameter in named if any(part in name for part in NO_DECAY)]
    groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    options = {"lr": section.learning_rate, "betas": (section.adam_beta1, section.adam_beta2)}
    if section.optimizer != "adamw":
        return with_own_exceptions(_bitsandbytes_optimizer(groups, section, options), module)
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)
    return torch.optim.AdamW(groups, eps=section.adam_epsilon, fused=fused, **options)


def _bitsandbytes_optimizer(
    groups: list[dict[str, Any]], section: OptimSection, options: dict[str, Any]
) -> torch.optim.Optimizer:
    require_package(f"optimizer={section.optimizer}", "bitsandbytes")
    from bitsandbytes.optim import AdamW, Lion

    bits = 8 if section.optimizer.endswith("8bit") else 32
    if section.optimizer == "lion_8bit":
        return Lion(groups, optim_bits=bits, **options)
    paged = section.optimizer.startswith("paged")
    return AdamW(groups, eps=section.adam_epsilon, optim_bits=bits, is_paged=paged, **options)


def with_own_exceptions(optimizer: torch.optim.Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """Let a bitsandbytes optimizer keep the moments of embeddings in 32 bits, as `transformers.Trainer` does, by a list
    of its own.

    bitsandbytes 0.50 notes such exceptions once a process, by a parameter's place in its optimizer and by `id`, and
    holds on to the modules: a stage after another one would keep its first parameter in 32 bits, alone it would not.
    """
    from bitsandbytes.optim import GlobalOptimManager

    GlobalOptimManager.get_instance().initialize()
    optimizer.mng = GlobalOptimManager.__new__(GlobalOptimManager)
    optimizer.mng.initialize()
    embeddings = {id(part.weight) for part in all_modules(module) if isinstance(part, nn.Embedding)}
    for part in module.modules():  # a role of a shared backbone holds its parameters in modules of no kind
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) in embeddings:
                optimizer.mng.register_module_override(part, name, {"optim_bits": 32})
    return optimizer


def check_precision(module: nn.Module, learning_rate: float, name: str) -> None:
    """Warn of weights that are trained whole in bfloat16 (`align.recipe.model_section`).

    Raises:
        PrecisionError: float16 weights are trained.
    """
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.requires_grad}
    if torch.float16 in dtypes:
        raise PrecisionError(f"{name}: float16 weights overflow in training without a loss scale; load float32 weights")
    if torch.bfloat16 in dtypes and is_main():
        logger.warning("%s: %s", name, rounded_away(learning_rate))


def require_whole(optimizer: str, sharded: bool) -> None:
    """Raises LaunchError for an `optimizer` of bitsandbytes on sharded parameters, which it does not know."""
    if sharded and optimizer != "adamw":
        raise LaunchError(
            f"optimizer={optimizer} does not know parameters that FSDP shards: use optimizer=adamw, or launch with DDP"
        )


class TrainedModel:
    """A module in training: prepared by accelerate, with its optimizer, schedule and clip.

    `module` is the prepared one (maybe wrapped by DDP); `raw` the one inside (the same, sharded, under FSDP2). The
    schedule is stepped here, once an optimizer step: accelerate's wrapper would step it once a rank.
    """

    def __init__(
        self,
        module: nn.Module,
        section: OptimSection,
        accelerator: Accelerator,
        total_steps: int,
        offload: Offload | None = None,
        *,
        name: str = "the model",
    ):
        self.accelerator, self.section, self.raw = accelerator, section, module
        require_whole(section.optimizer, accelerator.is_fsdp2)
        check_precision(module, section.learning_rate, name)
        optimizer = make_optimizer(module, section)
        specific = {"min_lr_rate": 0.1} if section.lr_scheduler_type == "cosine_with_min_lr" else None
        self.schedule = get_scheduler(
            section.lr_scheduler_type,
            optimizer,
            num_warmup_steps=section.warmup_steps,
            num_training_steps=max(1, total_steps),
            scheduler_specific_kwargs=specific,
        )
        with warnings.catch_warnings():  # torch 2.13 renames the switch, accelerate 1.15 knows the old name alone
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self.module, self.optimizer = sharding.prepare(accelerator, module, optimizer)
        self.parameters: list[nn.Parameter] = [p for p in self.module.parameters() if p.requires_grad]
        self.waiting = None if offload is None else offload.moments(self.optimizer)
        self.proof = StepProof(self.optimizer, name)

    @property
    def learning_rate(self) -> float:
        """Of the coming optimizer step."""
        return self.schedule.get_last_lr()[0]

    def gradients_stay_here(self, unless: bool) -> Any:
        """Context of a backward pass whose gradients are not averaged over ranks yet; `unless` it is the last one.

        Sharded ones always are: FSDP2 would keep what is not averaged whole on every rank, in float32, which is four
        bytes a parameter of the whole model.
        """
        averaged = unless or sharding.is_sharded(self.module)
        return nullcontext() if averaged else self.accelerator.no_sync(self.module)

    def clip(self) -> Tensor:
        """Clip the gradients; returns their norm before."""
        self.accelerator.unscale_gradients(self.optimizer)
        # not the accelerator's, which under FSDP compares the parameters of every model it knows, tensor by tensor
        return sharding.full(nn.utils.clip_grad_norm_(self.parameters, self.section.max_grad_norm))

    def step(self) -> None:
        """One step of optimizer and schedule, then no gradients.

        Raises:
            TrainingError: nothing was trained by it.
        """
        sharding.reshard(self.module)  # what is gathered would outlive the weights it copies
        self.proof.before()
        with self.waiting or nullcontext():
            self.optimizer.step()
        self.proof.after()
        self.schedule.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Copies of the gradients as they stand (zeros for parameters without any)."""
        return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self.parameters]

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and schedule; the weights are saved on their own. Collective, and whole on the first rank alone."""
        return {"optimizer": sharding.gathered_optimizer(self.optimizer), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        if self.waiting is not None:
            self.waiting.put_away()
        self.schedule.load_state_dict(state["schedule"])
        take_rates(self.schedule)


def take_rates(schedule: Any) -> None:
    """Give the optimizer the rates of `schedule` for the coming step: those it was saved with, unless the stage is
    longer now than it was then."""
    rates = [
        base * shape(schedule.last_epoch) for base, shape in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all of them together."""
    norms = [sharding.full(torch.linalg.vector_norm(wide(tensor))) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))


def mark_last(items: list) -> Iterator[tuple[bool, Any]]:
    """`(is_last, item)` pairs."""
    for index, item in enumerate(items):
        yield index == len(items) - 1, item


def all_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Those it holds, and those of the shared backbone that it computes with."""
    for part in module.modules():
        yield part
        if (base := base_of(part)) is not part:  # a role of a shared backbone does not hold what it computes with
            yield from base.modules()
