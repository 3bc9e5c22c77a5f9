"""Which model is meant where somebody names a folder: the model in it, or the newest one of a run.

A run's folder holds a folder a stage; what the stages are and what each makes says the registry. Where it has rounds
the newest one is meant. Without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.recipe import load_recipe
from align.recipe.lineage import WITH_CHATML, init_origin
from align.recipe.registry import REWARD_STAGES, STAGES
from align.recipe.rounds import rounds_in
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.paths import typed_path
from reward.folder import local_folder, read_json

POLICY_STAGES = tuple(stage.name for stage in STAGES.values() if stage.makes == "policy")
MADE_HERE = {"reward_config.json": "reward model", "critic_config.json": "critic"}
CONFIG, ADAPTER = "config.json", "adapter_config.json"
TOKENIZER = ("tokenizer_config.json", "tokenizer.json")
IN_CHECKPOINT = "policy"  # where a checkpoint of ppo has it, without a tokenizer


class NotAPolicyError(AlignError, ValueError):
    """A folder that is there and holds no model to talk to."""


def policy_at(path: str | Path, stage: str | None = None) -> str:
    """Folder or hub id of a language model.

    Args:
        path: a model or an adapter, a checkpoint, a stage's folder, or a run's, of which the newest finished policy is
            meant.
        stage: that stage's model of the run that `path` is or lies in.

    Raises:
        MissingFileError: no such folder, or no such stage in the run.
        NotAPolicyError: it holds another kind of model, or none.
    """
    folder = local_folder(path)
    if stage is not None:
        return str(_of_stage(path, stage))
    if folder is None:
        return str(path)
    if _is_model(folder / IN_CHECKPOINT):
        folder = folder / IN_CHECKPOINT
    if not _is_model(folder):
        of_a_stage = folder.name in STAGES and folder.parent == run_of(folder)
        folder = _of_stage(folder, folder.name) if of_a_stage else _newest(folder)
    _require_policy(folder)
    return str(folder)


def reward_at(path: str | Path) -> str:
    """Folder or hub id of a reward model: of a run its newest finished one, of a stage of it that stage's.

    Raises:
        MissingFileError: no such folder, or no finished reward model in the run.
    """
    folder = local_folder(path)
    if folder is not None and folder.name in REWARD_STAGES and folder.parent == run_of(folder):
        return str(_of_stage(folder, folder.name, REWARD_STAGES))
    if folder is None or run_of(folder) != folder:
        return str(folder or path)
    found = reward_of(folder)
    if found is None:
        raise MissingFileError(f"{folder} is a run without a finished reward model ({' or '.join(REWARD_STAGES)})")
    return found


def reward_of(run: Path) -> str | None:
    """The newest finished reward model of a run, None where it has none."""
    found = _newest_of_rounds(run, REWARD_STAGES[::-1])
    return str(found) if found is not None else None


def run_of(path: str | Path) -> Path | None:
    """The run that a folder is or lies in: of `runs/x`, `runs/x/sft` and `runs/x/sft/model` it is `runs/x`."""
    folder = typed_path(path)
    for candidate in (folder, *list(folder.parents)[:2]):
        if any((candidate / stage / "recipe.yaml").is_file() for stage in STAGES) or rounds_in(candidate):
            return candidate
    return None


def beginning_of(run: Path) -> str:
    """Folder or hub id of the model that the policies of a run began with: its base stage's, else its recipe's.

    Raises:
        NotAPolicyError: a run without a policy that was trained from another.
    """
    for stage in POLICY_STAGES:
        saved = run / stage / "recipe.yaml"
        if not STAGES[stage].parents or not saved.is_file():
            continue
        return _began_with(run, stage)
    raise NotAPolicyError(f"{run} has trained no policy from another model: name the model before it too")


def speaks_as(path: str | Path) -> str:
    """The folder or hub id whose tokenizer the model at `path` speaks with: its own, or, of a checkpoint that has none,
    that of the model its stage began with.

    Raises:
        MissingFileError: no such folder; the stage that the checkpoint's began with is gone.
    """
    folder = local_folder(path)
    if folder is None or any((folder / name).is_file() for name in TOKENIZER):
        return str(path)
    stage = next((one for one in folder.resolve().parents if (one / "recipe.yaml").is_file()), None)
    return str(path) if stage is None or stage.name not in STAGES else _began_with(stage.parent, stage.name)


def _began_with(run: Path, stage: str) -> str:
    origin = init_origin(load_recipe(run / stage / "recipe.yaml"), stage)
    if origin.kind == "stage":
        return str(_of_stage(run, origin.value))
    whole = run / WITH_CHATML
    return str(whole if whole.is_dir() else origin.value)


def called(path: str | Path) -> str:
    """What a model is called on a screen: its hub id, its folder's name, or run and stage."""
    folder, run = Path(path), run_of(path)
    if run is not None and folder.parent.parent == run:
        return f"{run.resolve().name}/{folder.parent.name}"
    return folder.resolve().name if folder.is_dir() else str(path)


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / ADAPTER).is_file()


def _finished(run: Path, stages: Sequence[str]) -> Path | None:
    done = (run / stage / "model" for stage in stages if (run / stage / "summary.json").is_file())
    return next((model for model in done if _is_model(model)), None)


def _newest_of_rounds(run: Path, stages: Sequence[str]) -> Path | None:
    """The first of these stages that is finished in the newest round, else in what ran before the rounds."""
    found = (_finished(folder, stages) for folder in (*rounds_in(run)[::-1], run))
    return next(filter(None, found), None)


def _newest(folder: Path) -> Path:
    if run_of(folder) != folder:
        raise NotAPolicyError(
            f"{folder} holds no model ({CONFIG} or {ADAPTER}), and no stage of a run: name a model's folder, or a run's"
        )
    found = _newest_of_rounds(folder, POLICY_STAGES[::-1])
    if found is None:
        *others, last = POLICY_STAGES
        raise NotAPolicyError(
            f"{folder} is a run without a finished policy ({', '.join(others)} or {last}): `align run` goes on with it"
        )
    return found


def _of_stage(path: str | Path, stage: str, wanted: Sequence[str] = POLICY_STAGES) -> Path:
    run = run_of(path)
    if run is None:
        raise MissingFileError(f"{path} is no run's folder, so it has no stage '{stage}': name a model's folder")
    found = _finished(run, [stage])
    if found is None:
        raise MissingFileError(f"{run} has no finished stage '{stage}' with a model")
    if stage not in wanted:
        _require_policy(found)
    return found


def _require_policy(folder: Path) -> None:
    kind = next((words for name, words in MADE_HERE.items() if (folder / name).is_file()), None)
    for name, key, mark in ((CONFIG, "architectures", "SequenceClassification"), (ADAPTER, "task_type", "SEQ_CLS")):
        if kind is None and (folder / name).is_file() and mark in str(read_json(folder / name).get(key)):
            kind = "classifier"
    if kind is not None:
        raise NotAPolicyError(
            f"{folder} is a {kind}, which scores replies and writes none: name a language model, and give a reward "
            "model with --reward"
        )
