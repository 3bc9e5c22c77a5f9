"""Checkpoints of PPO: everything that changes while it trains, by the parts that own it; what is saved, put back, and
left of an iteration that fails.

`step-N/` holds `policy/` (a Hugging Face folder), `critic/` and, with an average, `ema/` as safetensors,
`trainer_state.json` (transformers'), and `ppo_state.pt` (tensors and plain values; read with weights_only=True). Of a
model with an adapter only that (and a head) is written, without a config, and the state says which base it was on. A
checkpoint is always the boundary between two iterations; rollouts are kept only where those of coming iterations were
sampled ahead (`rollout.py`), else each samples its own. Sampling and shuffling draw from seeds derived from (seed,
iteration), so the random generators are saved for rewards and callbacks that use them.

Any number of ranks goes on from it, under DDP or FSDP2: weights and optimizer state are whole, what is the same on
every rank is taken as it is, and what each had of its own is dealt anew. Two things differ, which the log says: a rank
samples with a seed of its own, so that other replies are drawn than a run on as many ranks would have; and the random
generators, which rewards and callbacks may draw from, begin anew from (seed, iteration, rank).

A failed iteration. Until the first optimizer step an iteration changes nothing but the small parts (which prompts come
next, running statistics, generators, …), which are noted when it begins and put back; then a checkpoint of the boundary
is written, whatever the exception was. Weights are not copied: once a step has moved them the boundary is gone, what
there is goes to `failed/`, and the newest checkpoint before is named. An error of ours becomes a TrainingError that
says where the state is; any other goes on as it came, with a note. Several ranks save together, so what stops one of
them must be known to all (`guards.together`). Inside the update they cannot tell one another: one that fails there
saves nothing and ends the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState

from align.data.fingerprint import Fingerprint
from align.recipe.ppo_section import PPOConfig
from align.runs import checkpoint
from align.runs.errors import CheckpointError, SavedError, TrainingError
from align.runs.seeding import derive, rng_state, seed_everything, set_rng_state
from align.runtime.errors import AlignError
from align.trainers import sharding
from align.trainers.optimization import TrainedModel
from align.trainers.ppo import bases
from align.trainers.ppo.learner import WeightAverage
from align.trainers.trained_data import require_same_data

logger = logging.getLogger(__name__)

SCHEMA = 1
STATE_FILE, TRAINER_FILE, WEIGHTS_FILE = "ppo_state.pt", "trainer_state.json", "model.safetensors"
ORDERED_BY = {"ppo.data": ("prompt_sampler", "ahead"), "ppo.ptx_data": ("ptx",)}
ORDERED_BY |= {"ppo.critic_warmup_from": ("warmup",)}  # parts that start anew on other rows
Stopped = (Exception, KeyboardInterrupt, SystemExit)


class Stateful(Protocol):
    """Owns values that change while PPO trains."""

    def state_dict(self) -> Any:
        """Them, as tensors and plain values."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from `state_dict()`."""


class Dealt(Stateful, Protocol):
    """Has a state of its own on every rank."""

    def dealt(self, states: list[Any], ranks: int) -> list[Any]:
        """For so many ranks in order, what other ranks left as `states`."""


class Generators:
    """The process's random generators."""

    def state_dict(self) -> dict[str, Any]:
        """Of Python, numpy and torch."""
        return rng_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw on from `state_dict()`."""
        set_rng_state(state)


@dataclass
class Attempt:
    """One iteration under way.

    Attributes:
        updating: whether it has come to the update, where ranks cannot tell one another of a failure.
    """

    updating: bool = False


class Checkpoints:
    """Saves and restores the parts of a trainer. Every rank calls every method.

    Args:
        models: what is trained, by the name of its folder: weights, optimizer and schedule.
        average: of the policy's weights, or None.
        parts: everything else that changes and is the same on every rank, by its name in the state.
        own: what each rank has of its own, beside its random generators. It is asked first, since batches that are
            being sampled are waited for, which may move the prompt sampler; and it is put back after `parts`. One that
            has `mark` and `back_to` is noted by these within this process.
        seed: of the run, which must be that of a checkpoint.
        data: what the run trains on, by key of the recipe.
        output_dir: the stage's folder; `checkpoint_dir` holds its checkpoints.
    """

    def __init__(
        self,
        models: dict[str, TrainedModel],
        average: WeightAverage | None,
        parts: dict[str, Stateful],
        own: dict[str, Dealt],
        *,
        seed: int,
        data: dict[str, Fingerprint],
        output_dir: Path,
        checkpoint_dir: Path,
        config: PPOConfig,
        accelerator: Accelerator,
    ):
        self.models, self.average, self.parts, self.own = models, average, parts, own
        self.generators, self.data, self.config, self.accelerator = Generators(), data, config, accelerator
        self.output_dir, self.checkpoint_dir = output_dir, checkpoint_dir
        self.facts = {"schema": SCHEMA, "seed": seed}

    def state_dict(self) -> dict[str, Any]:
        """What `ppo_state.pt` holds: every mutable value but the weights and `TrainerState`."""
        several = self.accelerator.num_processes > 1
        own = {name: [part.state_dict()] for name, part in {**self.own, "rng": self.generators}.items()}
        own = {name: gather_object(mine) if several else mine for name, mine in own.items()}
        return {
            **self.facts,
            "world_size": self.accelerator.num_processes,
            "data": self.data,
            "bases": {name: bases.base_of(model.raw) for name, model in self.models.items()},
            **{name: model.state_dict() for name, model in self.models.items()},
            **{name: part.state_dict() for name, part in self.parts.items()},
            **own,
        }

    def save(self, folder: Path, trainer_state: TrainerState) -> Path:
        """Write `<folder>/step-N` atomically; the first rank writes.

        Raises:
            StorageError: the disk is full or not writable; older steps are intact.
        """
        state, modules, names = self.state_dict(), self._modules(), self._learnt()
        weights = {name: sharding.gathered_state_dict(module, names[name]) for name, module in modules.items()}

        def write(target: Path) -> None:
            if not self.accelerator.is_main_process:
                return
            for name, tensors in weights.items():
                _save_weights(modules[name], tensors, target / name)
            trainer_state.save_to_json(str(target / TRAINER_FILE))
            torch.save(state, target / STATE_FILE)

        return checkpoint.save(folder, trainer_state.global_step, write, self.config.save_total_limit)

    def save_failed(self, trainer_state: TrainerState) -> Path:
        """Write what there is inside an iteration, apart from the sound checkpoints."""
        return self.save(self.output_dir / "failed", trainer_state)

    def load(self, folder: Path, trainer_state: TrainerState, push: Callable[[], Any]) -> None:
        """Put everything where it stood when `folder` was written.

        Args:
            push: brings an engine the weights, before the generators are put back.

        Raises:
            MissingFileError, CheckpointError: no such folder, a damaged one, or one of another run or other data.
            TrainingError: the engine does not take the weights.
        """
        checkpoint.verify(folder)
        if not (folder / STATE_FILE).is_file():
            raise CheckpointError(f"{folder} is not a PPO checkpoint: it has no {STATE_FILE}")
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        for key, now in self.facts.items():
            if state[key] != now:
                raise CheckpointError(
                    f"{folder} was written with {key} {state[key]}, this run has {now}: "
                    "continue with that, or start anew (--fresh)"
                )
        if state["bases"].keys() != self.models.keys():
            then, now = (" and ".join(names) for names in (state["bases"], self.models))
            raise CheckpointError(
                f"{folder} was written by a run that trains {then}, and this one trains {now}: "
                "continue with that, or start anew (--fresh)"
            )
        if state["reward_stats"].keys() != self.parts["reward_stats"].state_dict().keys():
            raise CheckpointError(
                f"{folder} was written with another normalize_reward than {self.config.normalize_reward}: "
                "continue with that, or start anew (--fresh)"
            )
        changed = require_same_data(folder, state["data"], self.data, self.output_dir)
        anew = {name for key in changed for name in ORDERED_BY.get(key, ())}
        self._load_weights(folder, state["bases"])
        state |= self._of_this_rank(state)
        for name, part in {**self.models, **self.parts, **self.own}.items():
            if name not in anew and state.get(name) is not None:  # as ptx that was off then
                part.load_state_dict(state[name])
        _load_trainer_state(trainer_state, folder / TRAINER_FILE)
        push()
        if "rng" in state:
            self.generators.load_state_dict(state["rng"])
        else:
            rank = self.accelerator.process_index
            seed_everything(derive(self.facts["seed"], "resumed", trainer_state.global_step, rank))

    def _of_this_rank(self, state: dict[str, Any]) -> dict[str, Any]:
        """What this rank goes on with of what each had of its own; without generators where there were fewer or more
        ranks, of which one line is said."""
        then, now, rank = state["world_size"], self.accelerator.num_processes, self.accelerator.process_index
        told = {name: state.pop(name) for name in (*self.own, "rng") if name in state}
        if then == now:
            return {name: states[rank] for name, states in told.items()}
        logger.info(
            "saved on %d rank%s, going on with %d: weights, optimizers and data are as they were; each rank samples "
            "with a seed of its own, so other replies come than with %d",
            *(then, "s" if then > 1 else "", now, then),
        )
        return {name: part.dealt(told[name], now)[rank] for name, part in self.own.items() if name in told}

    @contextmanager
    def iteration(self, trainer_state: TrainerState, save: Callable[[], Path]) -> Iterator[Attempt]:
        """Around an iteration: where it fails before a weight has moved, everything is put back to the boundary before
        it, and that is saved.

        Args:
            save: writes a checkpoint of the boundary.

        Raises:
            TrainingError: an AlignError was raised inside; it says what is saved. Everything else is raised as it came.
        """
        small = {**self.parts, **self.own, "rng": self.generators}
        noted = {name: _note(small[name]) for name in (*self.own, *self.parts, "rng")}
        steps, attempt = self._steps_begun(), Attempt()
        try:
            yield attempt
        except Stopped as problem:
            alone = self.accelerator.num_processes == 1
            shared = alone or (isinstance(problem, Exception) and not attempt.updating)
            if shared and self._steps_begun() == steps:
                for model in self.models.values():
                    model.drop_gradients()
                for name, part in small.items():
                    getattr(part, "back_to", part.load_state_dict)(noted[name])
                told = _saved(save, "the state before it")
            else:
                told = self._past_the_boundary(problem, trainer_state)
            _raise(problem, told, trainer_state.global_step + 1)

    @contextmanager
    def evaluation(self, trainer_state: TrainerState, save: Callable[[], Path]) -> Iterator[None]:
        """Around an evaluation, at a boundary: where it fails, the state is saved, after the first iteration."""
        try:
            yield
        except Stopped as problem:
            shared = self.accelerator.num_processes == 1 or isinstance(problem, Exception)  # signals come when they do
            if not trainer_state.global_step or not shared:
                raise
            _raise(problem, _saved(save, "the state"))

    def _steps_begun(self) -> int:
        """Optimizer steps, by whom ever."""
        return sum(model.proof.steps for model in self.models.values())

    def _past_the_boundary(self, problem: BaseException, trainer_state: TrainerState) -> str:
        """Save what is left inside an iteration, where that can be done; tell from where a run goes on."""
        newest = checkpoint.latest(self.checkpoint_dir)
        told = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint before it"
        several = self.accelerator.num_processes > 1
        if isinstance(problem, SavedError) or several or not isinstance(problem, Exception):
            return told
        try:
            folder = self.save_failed(trainer_state)
        except Exception as worse:
            return f"weights have moved, and the models could not be saved ({worse}); {told}"
        return f"weights have moved; the models as they are inside the iteration are saved in {folder}, {told}"

    def _modules(self) -> dict[str, nn.Module]:
        modules = {name: model.raw for name, model in self.models.items()}
        return modules | ({} if self.average is None else {"ema": self.average.module})

    def _learnt(self) -> dict[str, list[str] | None]:
        names = {name: bases.learnt(model.raw) for name, model in self.models.items()}
        return {**names, "ema": names["policy"]}

    def _load_weights(self, folder: Path, on_bases: dict[str, Any]) -> None:
        """Read on the CPU, copied to where each module is."""
        names = self._learnt()
        for name, model in self.models.items():
            bases.check_base(folder, name, model.raw, on_bases[name])
            sharding.load_gathered(model.raw, folder / name / WEIGHTS_FILE, names[name])
        if self.average is None:
            return
        if not (folder / "ema").is_dir():
            raise CheckpointError(
                f"{folder} was written without ema_decay, this run has it: leave it out, or start anew (--fresh)"
            )
        sharding.load_gathered(self.average.module, folder / "ema" / WEIGHTS_FILE, names["ema"])


def _note(part: Stateful) -> Any:
    return getattr(part, "mark", part.state_dict)()


def _raise(problem: BaseException, told: str, iteration: int | None = None) -> NoReturn:
    if not isinstance(problem, AlignError):
        problem.add_note(told if iteration is None else f"iteration {iteration}: {told}")
        raise problem
    where = "" if iteration is None or isinstance(problem, SavedError) else f" (iteration {iteration})"
    raise TrainingError(f"{problem}{where}; {told}") from problem


def _saved(save: Callable[[], Path], what: str) -> str:
    try:
        return f"{what} is saved in {save()}"
    except Exception as worse:  # a device that is lost, too: the first error is the one to tell
        return f"{what} could not be saved ({worse})"


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


def _load_trainer_state(trainer_state: TrainerState, file: Path) -> None:
    saved = TrainerState.load_from_json(str(file))
    best = ("best_metric", "best_global_step", "best_model_checkpoint")
    kept = ("global_step", "epoch", "log_history", "num_input_tokens_seen", "stateful_callbacks")
    for name in (*kept, *best):
        setattr(trainer_state, name, getattr(saved, name))
