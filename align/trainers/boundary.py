"""What is left of an iteration that fails: the state before it wherever that can still be had, and words that say so.

Until the first optimizer step an iteration changes nothing but a few small states (which prompts come next, running
statistics, generators), which are noted when it begins and put back; then a checkpoint of the boundary is written,
whatever the exception was. Weights are not copied: once a step has moved them the boundary is gone, what there is goes
to `failed/`, and the newest checkpoint before is named. An error of ours becomes a TrainingError that says where the
state is; any other goes on as it came, with a note.

Several ranks save together, so what stops one of them must be known to all (`PPOTrainer.together`). Inside the update
they cannot tell one another: one that fails there saves nothing and ends the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from align.runs.checkpoint import latest
from align.runs.errors import SavedError, TrainingError
from align.runs.seeding import rng_state, set_rng_state
from align.trainers import ppo_state
from data_formats.errors import AlignError

if TYPE_CHECKING:
    from align.trainers.ppo import PPOTrainer

PARTS = ("ahead", "sampler", "reward_stats", "kl", "ptx", "ptx_coef")
Stopped = (Exception, KeyboardInterrupt, SystemExit)


@contextmanager
def kept_boundary(trainer: PPOTrainer) -> Iterator[None]:
    """Around an iteration; inside, `trainer.updating` is set when the update begins.

    Raises:
        TrainingError: an AlignError was raised inside; it says what is saved. Everything else is raised as it came.
    """
    owners = {name: part for name in PARTS if (part := getattr(trainer, name)) is not None}
    states: dict[str, Any] = {name: part.state_dict() for name, part in owners.items()}
    generators, steps, trainer.updating = rng_state(), _steps(trainer), False
    try:
        yield
    except Stopped as problem:
        shared = trainer.world_size == 1 or (isinstance(problem, Exception) and not trainer.updating)
        if shared and _steps(trainer) == steps:
            trainer._drop_gradients()
            set_rng_state(generators)
            for name, part in owners.items():
                part.load_state_dict(states[name])
            told = _saved(trainer)
        else:
            told = _after_the_boundary(trainer, problem)
        _raise(problem, told, trainer.state.global_step + 1)


def _steps(trainer: PPOTrainer) -> int:
    """Optimizer steps that were begun, by whom ever."""
    return trainer.policy.proof.steps + trainer.critic.proof.steps


def _raise(problem: BaseException, told: str, iteration: int | None = None) -> NoReturn:
    if not isinstance(problem, AlignError):
        problem.add_note(told if iteration is None else f"iteration {iteration}: {told}")
        raise problem
    where = "" if iteration is None or isinstance(problem, SavedError) else f" (iteration {iteration})"
    raise TrainingError(f"{problem}{where}; {told}") from problem


@contextmanager
def kept_state(trainer: PPOTrainer) -> Iterator[None]:
    """Around an evaluation, at a boundary: where it fails, the state is saved, after the first iteration."""
    try:
        yield
    except Stopped as problem:
        shared = trainer.world_size == 1 or isinstance(problem, Exception)  # signals come when they come
        if not trainer.state.global_step or not shared:
            raise
        _raise(problem, _saved(trainer, "the state"))


def _saved(trainer: PPOTrainer, what: str = "the state before it") -> str:
    try:
        return f"{what} is saved in {trainer.save_checkpoint()}"
    except Exception as worse:  # a device that is lost, too: the first error is the one to tell
        return f"{what} could not be saved ({worse})"


def _after_the_boundary(trainer: PPOTrainer, problem: BaseException) -> str:
    """Save what is left inside an iteration, where that can be done; tell from where a run goes on."""
    newest = latest(trainer.checkpoint_dir)
    told = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint before it"
    if isinstance(problem, SavedError) or trainer.world_size > 1 or not isinstance(problem, Exception):
        return told
    try:
        folder: Any = ppo_state.save(trainer, trainer.output_dir / "failed")
    except Exception as worse:
        return f"weights have moved, and the models could not be saved ({worse}); {told}"
    return f"weights have moved; the models as they are inside the iteration are saved in {folder}, {told}"
