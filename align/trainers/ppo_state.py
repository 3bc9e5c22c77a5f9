"""Everything of PPO that changes while it trains, in one place: what a checkpoint holds and how it is put back.

`step-N/` holds `policy/` (a Hugging Face folder), `critic/` and, with an average, `ema/` as safetensors,
`trainer_state.json` (transformers'), and `ppo_state.pt` (tensors and plain values; read with weights_only=True). Of a
model with an adapter only that (and a head) is written, without a config, and the state says which base it was on. A
checkpoint is always the boundary between two iterations; rollouts are kept only where the next iteration's were sampled
ahead (`overlap.py`), else it samples its own. Sampling and shuffling draw from seeds derived from (seed, iteration), so
the random generators are saved for rewards and callbacks that use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState

from align.runs import checkpoint
from align.runs.errors import CheckpointError
from align.runs.seeding import rng_state, set_rng_state
from align.trainers import bases, sharding
from align.trainers.engine_sync import push_weights
from align.trainers.resumed import require_same_data

if TYPE_CHECKING:
    from align.trainers.ppo import PPOTrainer

SCHEMA = 1
STATE_FILE, TRAINER_FILE, WEIGHTS_FILE = "ppo_state.pt", "trainer_state.json", "model.safetensors"


def state_of(trainer: PPOTrainer) -> dict[str, Any]:
    """Every mutable value but the weights, `TrainerState` and the generators. Every rank calls it."""
    return {
        "schema": SCHEMA,
        "seed": trainer.seed,
        "world_size": trainer.world_size,
        "optimizer_steps": trainer.optimizer_steps,
        "policy_version": trainer.policy_version,
        "bases": {name: bases.base_of(getattr(trainer, name).raw) for name in ("policy", "critic")},
        "policy": trainer.policy.state_dict(),
        "critic": trainer.critic.state_dict(),
        "data": trainer.data,
        "prompt_sampler": trainer.sampler.state_dict(),
        "ptx": trainer.ptx.state_dict() if trainer.ptx is not None else None,
        "ptx_coef": trainer.ptx_coef.state_dict(),
        "kl": trainer.kl.state_dict(),
        "reward_stats": trainer.reward_stats.state_dict(),
    }


def save(trainer: PPOTrainer, folder: Path) -> Path:
    """Write `<folder>/step-N` atomically; every rank calls it, the first one writes.

    Raises:
        StorageError: the disk is full or not writable; older steps are intact.
    """
    ahead = [trainer.ahead.state_dict()]  # first: to wait for it may move the prompt sampler
    generators = [rng_state()]
    if trainer.world_size > 1:
        ahead, generators = gather_object(ahead), gather_object(generators)
    main = trainer.accelerator.is_main_process
    modules = {"policy": trainer.policy.raw, "critic": trainer.critic.raw}
    modules |= {} if trainer.ema is None else {"ema": trainer.ema.module}
    names = _learnt(trainer)
    weights = {name: sharding.gathered_state_dict(module, names[name]) for name, module in modules.items()}
    state = state_of(trainer)

    def write(target: Path) -> None:
        if not main:
            return
        for name, tensors in weights.items():
            _save_weights(modules[name], tensors, target / name)
        trainer.state.save_to_json(str(target / TRAINER_FILE))
        torch.save({**state, "ahead": ahead, "rng": generators}, target / STATE_FILE)

    return checkpoint.save(folder, trainer.state.global_step, write, trainer.config.save_total_limit)


def load(trainer: PPOTrainer, folder: Path) -> None:
    """Put `trainer` where it stood when `folder` was written.

    Raises:
        MissingFileError, CheckpointError: no such folder, a damaged one, or one of another run or other data.
        TrainingError: the engine does not take the weights.
    """
    checkpoint.verify(folder)
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} is not a PPO checkpoint: it has no {STATE_FILE}")
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    for key, own in (("schema", SCHEMA), ("seed", trainer.seed), ("world_size", trainer.world_size)):
        if state[key] != own:
            raise CheckpointError(
                f"{folder} was written with {key} {state[key]}, this run has {own}: "
                "continue with that, or start anew (--fresh)"
            )
    stats = state.get("reward_stats") or state["running_mean"]  # as checkpoints called it that knew no deviation
    if stats.keys() != trainer.reward_stats.state_dict().keys():
        raise CheckpointError(
            f"{folder} was written with another normalize_reward than {trainer.config.normalize_reward}: "
            "continue with that, or start anew (--fresh)"
        )
    new = require_same_data(folder, state.get("data") or {}, trainer.data, trainer.output_dir)
    names = _learnt(trainer)
    for name in ("policy", "critic"):  # read on the CPU, copied to where the module is
        module = getattr(trainer, name).raw
        if "bases" in state:  # older checkpoints hold the base as well
            bases.check_base(folder, name, module, state["bases"][name])
        sharding.load_gathered(module, folder / name / WEIGHTS_FILE, names[name])
    if trainer.ema is not None:
        _load_ema(trainer, folder)
    trainer.policy.load_state_dict(state["policy"])
    trainer.critic.load_state_dict(state["critic"])
    if "ppo.data" not in new:  # of other prompts an epoch begins
        trainer.sampler.load_state_dict(state["prompt_sampler"])
        trainer.ahead.load_state_dict(state["ahead"][trainer.rank] if "ahead" in state else {})
    if trainer.ptx is not None and state["ptx"] is not None and "ppo.ptx_data" not in new:
        trainer.ptx.load_state_dict(state["ptx"])
    trainer.reward_stats.load_state_dict(stats)
    for name in ("kl", "ptx_coef"):
        if name in state:  # older checkpoints knew only fixed coefficients
            getattr(trainer, name).load_state_dict(state[name])
    trainer.optimizer_steps, trainer.policy_version = state["optimizer_steps"], state["policy_version"]
    _load_trainer_state(trainer, folder / TRAINER_FILE)
    push_weights(trainer, base=True)
    set_rng_state(state["rng"][trainer.rank])


def _learnt(trainer: PPOTrainer) -> dict[str, list[str] | None]:
    names = {name: bases.learnt(getattr(trainer, name).raw) for name in ("policy", "critic")}
    return {**names, "ema": names["policy"]}


def _save_weights(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = getattr(module, "config", None)
    if bases.learnt(module) is not None:  # its config is the base's, with which transformers would load random weights
        return
    if isinstance(module, PreTrainedModel):  # as its save_pretrained notes them, whether or not that was called before
        config.architectures = [type(module).__name__.removeprefix("FSDP")]
        config.dtype = str(module.dtype).removeprefix("torch.")
    if config is not None and hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)


def _load_ema(trainer: PPOTrainer, folder: Path) -> None:
    if not (folder / "ema").is_dir():
        raise CheckpointError(
            f"{folder} was written without ema_decay, this run has it: leave it out, or start anew (--fresh)"
        )
    sharding.load_gathered(trainer.ema.module, folder / "ema" / WEIGHTS_FILE, _learnt(trainer)["ema"])


def _load_trainer_state(trainer: PPOTrainer, file: Path) -> None:
    saved = TrainerState.load_from_json(str(file))
    best = ("best_metric", "best_global_step", "best_model_checkpoint")
    for name in ("global_step", "epoch", "log_history", "num_input_tokens_seen", *best):
        setattr(trainer.state, name, getattr(saved, name))
