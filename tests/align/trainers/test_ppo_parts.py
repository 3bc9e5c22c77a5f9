"""PPO is made of parts: none knows the trainer, and every value that changes has one owner, which a checkpoint asks."""

import ast
import copy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from align.runs.seeding import derive
from align.trainers import ppo
from align.trainers.ppo.trainer import PPOTrainer
from tests.align.trainers import overlap_case, ppo_case

FOLDER = Path(ppo.__file__).parent
OURS = ("align.trainers", "align.data.prompts", "align.runs.proof", "reward.running")
MODULES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "trainer"))
# What changes and is in no checkpoint, and why that is right.
ELSEWHERE = {
    "WeightSync.pushed_version": "of the engine's process: a run that resumes pushes",
    "Rollout.seconds": "a time that was measured",
    "Rollout._told": "whether a warning was given",
    "Rollout._queue": "asked for by `state_dict`, as plain values",
    "Rollout._queued_version": "of the engine's process: an iteration that finds the engine free sets it",
    "StepProof.steps": "counts begun steps within this process, to find out whether one was made",
    "StepProof._before": "the same",
    "StepProof._witnesses": "of one step",
    "StepProof.proven": "whether this process has seen a step move a weight",
    "TrainedModel.waiting": "which moments wait in the host's memory",
}
EVERYTHING = {
    "critic_warmup_steps": 1,
    "normalize_reward": "running_mean_std",
    "kl_target": 1.0,
    "ptx_coef": "auto",
    "ptx_ratio": 1,
    "ptx_blocks": [[1, 2, 3], [4, 5], [6, 7, 8]] * 2,
    "ema_decay": 0.9,
}


def trees():
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_no_part_names_the_trainer():
    found = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [f"{getattr(node, 'module', '') or ''}.{alias.name}" for alias in node.names]
                found += [f"{name}: {one}" for one in names if "PPOTrainer" in one or ".ppo.trainer" in one]
            if isinstance(node, ast.arg) and node.arg in ("trainer", "ppo_trainer"):
                found.append(f"{name}:{node.lineno}: a parameter called {node.arg}")
            if isinstance(node, ast.arg | ast.AnnAssign) and "PPOTrainer" in ast.unparse(node):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def inner(value: Any) -> dict[str, Any]:
    """What an object of ours holds, by name; the items of a plain container."""
    if isinstance(value, dict):
        return {str(key): one for key, one in value.items()}
    if isinstance(value, list | tuple):
        return {str(at): one for at, one in enumerate(value)}
    held = dict(vars(value)) if hasattr(value, "__dict__") else {}
    return held | {name: getattr(value, name) for name in getattr(type(value), "__slots__", ()) if hasattr(value, name)}


def is_part(value: Any) -> bool:
    return type(value).__module__.startswith(OURS) and not isinstance(value, type)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = ppo_case.trainer(tmp_path_factory.mktemp("parts"), num_iterations=2, save_steps=1, **EVERYTHING)
    trainer.train()
    return trainer


def test_no_part_holds_the_trainer(trained):
    """Nor a bound method of it, in any depth."""
    seen, found, todo = set(), [], [(name, part) for name, part in vars(trained).items() if is_part(part)]
    assert {"rollout", "weight_sync", "model_passes", "learner", "evaluation", "checkpoints"} <= {n for n, _ in todo}
    while todo:
        path, value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        owner = value.__self__ if isinstance(value, MethodType) else value
        if isinstance(owner, PPOTrainer):
            found.append(path)
        elif is_part(value) or isinstance(value, dict | list | tuple):
            todo += [(f"{path}.{name}", one) for name, one in inner(value).items()]
    assert len(seen) > 100 and found == []


def plain(value: Any) -> Any:
    """A value as one that can be compared and is not changed any more."""
    if isinstance(value, Tensor):
        return ("tensor", value.detach().clone().tolist())
    if isinstance(value, nn.Module):
        return {name: plain(parameter) for name, parameter in value.named_parameters()}
    if isinstance(value, torch.optim.Optimizer) or (hasattr(value, "optimizer") and hasattr(value, "load_state_dict")):
        return plain(value.state_dict())
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return plain(value.state_dict())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return copy.copy(value) if isinstance(value, int | float | str | bool | None) else None


def values(trainer: PPOTrainer) -> dict[str, tuple[Any, Any]]:
    """Every value that a part, or the trainer itself, holds: by `Class.name` of where it was first met, the object that
    holds it and what it is."""
    found, seen, todo = {}, set(), [("trainer", trainer)]
    while todo:
        path, owner = todo.pop(0)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for name, value in inner(owner).items():
            if is_part(value):
                todo.append((f"{path}.{name}", value))
            elif isinstance(value, dict | list | tuple) and any(map(is_part, inner(value).values())):
                todo += [(f"{path}.{name}.{key}", one) for key, one in inner(value).items() if is_part(one)]
            elif f"{type(owner).__name__}.{name}" not in ELSEWHERE:
                found[f"{path}.{name}"] = (owner, plain(value))
    return found


LOOP = {"state", "control", "callback_handler", "metrics_log", "samples_log", "pending_samples", "args"}


def test_what_an_iteration_changes_is_in_the_checkpoint(tmp_path, trained):
    """Every value that differs between a new trainer and one that has trained has a `Stateful` owner, which the
    checkpoint asks, and is the same in a new trainer that resumes."""
    options = {"num_iterations": 2, "save_steps": 1, **EVERYTHING}
    new = ppo_case.trainer(tmp_path, **options)
    before, after = values(new), values(trained)
    changed = {path for path in before.keys() & after.keys() if before[path][1] != after[path][1]}
    changed -= {path for path in changed if path.split(".")[1] in {*LOOP, "output_dir"}}
    places = {path for path in changed if after[path][1] == str(tmp_path)}
    checkpoints = trained.checkpoints
    owners = {**checkpoints.models, "ema": checkpoints.average, **checkpoints.parts, **checkpoints.own}
    owned = {id(part) for part in owners.values()}
    owned |= {id(one) for part in owners.values() for one in inner(part).values() if is_part(one)}
    without = sorted(path for path in changed - places if id(after[path][0]) not in owned)
    assert without == []
    kinds = {type(after[path][0]).__name__ for path in changed}
    assert {"TrainedModel", "WeightAverage", "PromptSampler", "RunningMeanStd", "KLController"} <= kinds
    assert {"PtxController", "StepCount"} <= kinds
    new.load_checkpoint(trained.checkpoint_dir / "step-2")
    resumed = values(new)
    assert {path for path in changed - places if resumed[path][1] != after[path][1]} == set()


def test_a_prefetched_batch_is_in_the_checkpoint(tmp_path):
    trainer = overlap_case.make(tmp_path, num_iterations=3, save_steps=1)
    trainer.train()
    again = overlap_case.make(tmp_path, num_iterations=3, save_steps=1)
    again.load_checkpoint(trainer.checkpoint_dir / "step-2")
    assert again.rollout.state_dict()[0]["indexes"] and not again.rollout.engine.asked


def test_every_owner_puts_back_what_it_gave(trained):
    checkpoints = trained.checkpoints
    for name, part in {**checkpoints.parts, **checkpoints.own, "rng": checkpoints.generators}.items():
        given = plain(part.state_dict())
        part.load_state_dict(part.state_dict())
        assert plain(part.state_dict()) == given, name


def test_prefetching_leaves_the_count_of_iterations_alone(tmp_path):
    trainer, set_to = overlap_case.make(tmp_path, num_iterations=3), []

    class Watched(type(trainer.state)):
        def __setattr__(self, name, value):
            if name == "global_step" and self is trainer.state:
                set_to.append(value)
            super().__setattr__(name, value)

    trainer.state.__class__ = Watched
    trainer.train()
    assert set_to == [1, 2, 3]
    assert [params.seed for params in trainer.engine.asked] == [derive(0, "rollout", step, 0) for step in range(3)]
