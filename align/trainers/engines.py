"""From a recipe's rollout section to an engine for the module that is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from align.recipe.ppo_section import PPOConfig
from align.recipe.rollout_section import RolloutSection
from align.runs import engine_list
from align.runs.errors import TrainingError
from align.runtime.packages import is_installed
from align.runtime.ranks import agree
from rollouts.errors import RolloutError
from rollouts.exact import TrainerPass
from rollouts.protocol import Engine
from rollouts.select import filled, make_engine
from rollouts.settings import VLLMSettings

logger = logging.getLogger(__name__)

NEEDS_FULL = "needs probabilities before truncation, which vLLM tells at temperature 1 alone"


def engine_of(
    rollout: RolloutSection,
    model: nn.Module,
    pad_token_id: int,
    *,
    seed: int,
    temperature: float | None = None,
    return_support: bool = False,
    accelerator: Accelerator | PartialState | None = None,
    trainer_pass: TrainerPass | None = None,
    listed: Callable[[], Sequence[str]] | None = None,
) -> Engine:
    """The engine that `rollout` asks for.

    Args:
        model: the unwrapped policy; on its device.
        seed: of the engine itself; replies have seeds of their own.
        temperature: replies will be sampled at; default the section's.
        return_support: what could be drawn will be asked for.
        accelerator: of the ranks that sample together, which share one server that the first of them owns; all of
            them call this then. Without one this process is alone.
        trainer_pass: draws every token (`rollouts.exact`); without one the engine does.
        listed: the vLLM servers that are to be used now, where they join and leave.

    Raises:
        RolloutError: that engine cannot be had here.
    """
    ranks = 1 if accelerator is None else accelerator.num_processes
    return make_engine(
        rollout.engine,
        model,
        pad_token_id=pad_token_id,
        batch_size=rollout.batch_size,
        vllm=vllm_settings(rollout, seed),
        temperature=rollout.temperature if temperature is None else temperature,
        return_support=return_support,
        is_owner=ranks == 1 or accelerator.is_main_process,
        share=of_the_first if ranks > 1 else None,
        trainer_pass=trainer_pass,
        listed=listed,
    )


def sampling_engine(
    rollout: RolloutSection,
    model: nn.Module,
    pad_token_id: int,
    *,
    seed: int,
    temperature: float | None = None,
    ranks: PartialState | None = None,
) -> Engine:
    """The engine that `rollout` asks for, with the weights that `model` has now; for sampling from a model that is not
    trained meanwhile. Every rank calls it.

    Args:
        ranks: those that sample together from this model, see `engine_of`.

    Other args as of `engine_of`.

    Raises:
        RolloutError: that engine cannot be had here, or on another rank.
    """
    merged = rollout.vllm.model_copy(update={"adapters": "merge"})  # they are pushed once
    rollout = rollout.model_copy(update={"vllm": merged})
    if rollout.engine == "vllm_server" and not merged.urls and merged.tensor_parallel == 1 and is_installed("vllm"):
        from rollouts.vllm.local import why_not_beside

        if not why_not_beside(model):  # nothing else wants this process meanwhile
            rollout = rollout.model_copy(update={"engine": "vllm"})
    build = partial(engine_of, rollout, model, pad_token_id, seed=seed, temperature=temperature, accelerator=ranks)
    engine = agree(build, RolloutError)
    return agree(lambda: filled(engine, model), RolloutError)


def training_engine(
    config: PPOConfig,
    model: nn.Module,
    pad_token_id: int,
    trainer_pass: TrainerPass | None = None,
    *,
    seed: int,
    accelerator: Accelerator,
    output_dir: Path,
) -> Engine:
    """The same for PPO; `auto` leaves vLLM alone where it could not tell what the configuration asks of it. The pass is
    for `rollout.exact`; the servers are those that `align engine` has listed in `output_dir`, else the recipe's."""
    rollout = config.rollout
    if rollout.engine == "auto" and config.beyond_vllm:
        logger.info("rollout engine: auto takes HF generate, because importance_sampling_correction %s", NEEDS_FULL)
        rollout = rollout.model_copy(update={"engine": "hf"})
    nucleus = config.policy_support == "nucleus"
    return engine_of(
        rollout,
        model,
        pad_token_id,
        seed=seed,
        return_support=nucleus,
        accelerator=accelerator,
        trainer_pass=trainer_pass if rollout.exact else None,
        listed=partial(engine_list.read, output_dir),
    )


def check_overlap(config: PPOConfig, engine: Engine, ranks: int) -> None:
    """Raises TrainingError where replies are to be sampled beside the training by an engine that reads its module, or
    weights to be pushed beside it, which several ranks do together."""
    if config.rollout.overlap and engine.shares_module:
        raise TrainingError(
            f"ppo.rollout.overlap: {type(engine).__name__} samples with the module that is trained meanwhile; give an "
            "engine with weights of its own (engine: vllm_server), or set overlap to 0"
        )
    if config.rollout.overlap > 1 and ranks > 1:
        raise TrainingError(
            f"ppo.rollout.overlap: {config.rollout.overlap} batches ahead are for one process, and there are {ranks} "
            "ranks, which push weights together, between two updates; set overlap to 1"
        )


def vllm_settings(rollout: RolloutSection, seed: int = 0) -> VLLMSettings:
    """What vLLM is told; it has room for the longest prompt with its longest reply unless the recipe names a length."""
    told: dict[str, Any] = {name: getattr(rollout.vllm, name) for name in type(rollout.vllm).model_fields}
    told["max_model_len"] = rollout.vllm.max_model_len or rollout.max_length
    return VLLMSettings(**told, seed=seed)


def of_the_first(value: Any) -> Any:
    """The first rank's `value`, on every rank. Collective."""
    shared = [value]
    broadcast_object_list(shared, from_process=0)
    return shared[0]
