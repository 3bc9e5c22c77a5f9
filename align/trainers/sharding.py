"""Models spread over ranks by FSDP2: what has to be gathered, and when, so that the trainer need not know of it.

accelerate shards a model where it is prepared (`fully_shard`, a group for every transformer layer), PPO's policy and
critic one by one, each with an optimizer of its own. What follows from there:

- Sampling takes as many forward passes as the longest reply of a rank, so ranks cannot gather layer by layer while they
  sample with the policy itself; `unsharded` gathers a whole model for the while. A rank then holds that model in the
  dtype it computes in, besides its shards: this is the peak of memory to plan for (evaluation's forward passes hold
  policy and reference so). An engine with weights of its own is given them one by one, and nothing is gathered to
  sample.
- Checkpoints and saved models are whole, in the format of an unsharded run. A parameter is gathered at a time; the
  first rank keeps them all in host memory until they are written, the others none.
- No parameter stays gathered after a forward pass, not even those of the root, which FSDP2 leaves by default: three
  models take turns here, and a pass without a backward one would leave them until the weights they copy are stale.

A model without sharded parameters passes through every function as it is, and what was saved with any number of ranks
is loaded with any other. DeepSpeed and FSDP1 are refused: neither has been tried.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    fsdp2_prepare_model,
)
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from align.runs.errors import CheckpointError, LaunchError
from align.runs.launcher import asked
from align.runtime.ranks import is_main

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fsdp_plugin(mixed_precision: str = "no") -> FullyShardedDataParallelPlugin | None:
    """What the launcher asked for: FSDP2 as it was configured, or None (one process, or DDP).

    Differs from accelerate's own reading in two points. Every rank loads every model whole into host memory: models
    that are not sharded (rewards) would come out empty on all ranks but the first. Gradients are reduced in float32,
    and outputs keep the dtype they were computed in, the critic's float32.

    Raises:
        LaunchError: DeepSpeed, or FSDP1.
    """
    if asked("ACCELERATE_USE_DEEPSPEED"):
        raise LaunchError(
            "PPO trains policy and critic with an optimizer and a gradient clip each, which has not been tried under "
            "DeepSpeed; launch with DDP, or with --use_fsdp --fsdp_version 2 where the models must be sharded"
        )
    if not asked("ACCELERATE_USE_FSDP"):
        return None
    require_fsdp2()
    dtype = COMPUTE_DTYPES.get(mixed_precision)
    policy = None if dtype is None else MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False, mixed_precision_policy=policy)


def require_fsdp2() -> None:
    """Raises LaunchError where the launcher asked for FSDP1."""
    version = os.environ.get("FSDP_VERSION", "1")
    if asked("ACCELERATE_USE_FSDP") and version != "2":
        raise LaunchError(
            f"models are sharded by FSDP2 alone, and the launcher chose version {version}; launch with --fsdp_version 2"
        )


def make_accelerator(mixed_precision: str = "no") -> Accelerator:
    """An accelerator as PPO needs it: passes without gradients must not make DDP synchronise buffers, and losses, which
    are scaled here, must not be divided by the `gradient_accumulation_steps` of somebody's accelerate config.

    An earlier stage of this process may have set another precision; that one is forgotten.
    """
    plugin = fsdp_plugin(mixed_precision)
    if AcceleratorState._shared_state and (plugin or AcceleratorState().mixed_precision != mixed_precision):
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        fsdp_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    also_on_cpu(accelerator, plugin)
    return accelerator


def also_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """Let `accelerator` shard on CPU ranks too: accelerate 1.15 turns FSDP on for accelerator devices alone."""
    if plugin is not None and accelerator.device.type == "cpu" and accelerator.num_processes > 1:
        for shared in (PartialState._shared_state, AcceleratorState._shared_state):  # the first overwrites the second
            shared["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[nn.Module, Any]:
    """`module` on its device, wrapped or sharded as was launched, and its optimizer; without one, it is frozen.

    Raises:
        LaunchError: FSDP2 for a role of a shared backbone.
    """
    if not accelerator.is_fsdp2:
        if optimizer is None:
            return accelerator.prepare_model(module, evaluation_mode=True), None
        return accelerator.prepare(module.to(accelerator.device), optimizer)
    if any(hasattr(part, "peft_model") for part in module.modules()):
        raise LaunchError(
            "roles on one backbone cannot be sharded by FSDP2, since none of them holds the base: launch with DDP, or "
            "set ppo.shared_backbone to false"
        )
    plugin = accelerator.state.fsdp_plugin
    chosen = plugin.transformer_cls_names_to_wrap  # accelerate notes those of the first model, and wants them of all
    if optimizer is None:
        module = fsdp2_prepare_model(accelerator, module)
    else:
        module, optimizer = accelerator.prepare(module, optimizer)
    plugin.transformer_cls_names_to_wrap = chosen
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # values; nobody writes there
    module.set_reshard_after_forward(plugin.reshard_after_forward)
    return module, optimizer


def described(accelerator: Accelerator) -> str:
    """In words how the ranks share the work, for the user."""
    how = "FSDP2: policy, critic and reference are sharded" if accelerator.is_fsdp2 else "DDP: each holds every model"
    return f"{accelerator.num_processes} ranks, {how}; policy and critic are clipped each on its own"


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 has it."""
    return isinstance(module, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Let go of whatever is gathered, so that `parameters()` are the shards."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def unsharded(*modules: nn.Module) -> Iterator[None]:
    """The parameters of `modules` are whole for the while, and forward passes are no matter of the other ranks.

    Collective: all ranks enter together. For passes without gradients; weights must not change inside.
    """
    sharded = [module for module in modules if is_sharded(module)]
    try:
        for module in sharded:
            module.set_reshard_after_forward(False)
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.unshard()
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(AcceleratorState().fsdp_plugin.reshard_after_forward)
            reshard(module)


def full(tensor: Tensor) -> Tensor:
    """`tensor`, gathered where it is sharded. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_state_dict(module: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The state dict of `module`, or those of `names`, with whole tensors, shared ones once; of a sharded module on the
    CPU, and empty on all ranks but the first. Collective.
    """
    reshard(module)
    once = {name for name, _ in module.named_parameters()}
    twice = {name for name, _ in module.named_parameters(remove_duplicate=False)} - once
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in twice}
    state = state if names is None else {name: state[name] for name in names}
    if not is_sharded(module):
        return state
    return {name: value for name, tensor in state.items() if (value := _on_first(tensor)) is not None}


def _on_first(tensor: Tensor) -> Tensor | None:
    whole = full(tensor)
    return whole.cpu() if is_main() else None


def load_gathered(module: nn.Module, saved: str | Path, names: Collection[str] | None = None) -> None:
    """Put a safetensors file of `gathered_state_dict` back, or a folder's; every rank reads it, a tensor at a time.

    Raises:
        CheckpointError: what is saved and the module (or `names`) do not have the same tensors.
    """
    reshard(module)
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    left = {id(parameter): name for name, parameter in module.named_parameters() if names is None or name in names}
    for file in sorted(Path(saved).glob("model*.safetensors")) if Path(saved).is_dir() else [saved]:
        with safe_open(file, framework="pt") as tensors, torch.no_grad():
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if name not in own or tuple(tensors.get_slice(name).get_shape()) != tuple(own[name].shape):
                    raise CheckpointError(f"{file}: tensor '{name}' does not fit this model; it is of another one")
                own[name].copy_(spread(tensors.get_tensor(name), own[name]))
                left.pop(id(own[name]), None)
    if left:
        raise CheckpointError(f"{saved} has no tensor '{next(iter(left.values()))}'; it is of another model")


@contextmanager
def takes_whole(module: nn.Module) -> Iterator[None]:
    """`load_state_dict` of a sharded module takes whole tensors for the while, of which every rank keeps its part."""

    def spread_own(part: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, parameter in part.named_parameters(recurse=False):
            if prefix + name in state:
                state[prefix + name] = spread(state[prefix + name], parameter)

    reshard(module)
    parts = module.modules() if is_sharded(module) else ()
    hooks = [part.register_load_state_dict_pre_hook(spread_own) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, laid out as `like`; the tensor itself where that is not sharded."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its `state_dict()` with whole tensors; of sharded parameters on the CPU, and None on all ranks but the first.
    Collective.
    """
    state = optimizer.state_dict()
    moments = {
        index: {name: _on_first(value) if isinstance(value, DTensor) else value for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put `gathered_optimizer` back; every rank has the whole state and takes its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: spread(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
