"""What a supervised checkpoint holds beside transformers' own, so that a resumed run logs what a whole one would.

`figures.json`: the sums that the next log line and the last one will be made of, a value a rank. `data.json`: how many
rows the run trains on and a hash of them (`align.data.fingerprint`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from align.data.fingerprint import Fingerprint, difference, fingerprint
from align.runs.acceptance import is_accepted, note
from align.runs.errors import CheckpointError
from align.runtime.json_files import RunFileError, read_object

FIGURES_FILE, DATA_FILE = "figures.json", "data.json"
DATASETS = ("train_dataset", "eval_dataset")


class Sums(TrainerCallback):
    """Keeps the sums of a trainer's figures over its checkpoints.

    Args:
        trainer: has `_sums_so_far()` and `_take_sums(...)`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.resumed_from: Path | None = None
        self._at_boundary: dict[str, Any] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._at_boundary = None
        if self.resumed_from is not None and (found := read_object(self.resumed_from / FIGURES_FILE, "")):
            per_rank = found["ranks"]
            self.trainer._take_sums(per_rank[args.process_index % len(per_rank)])
        self.resumed_from = None

    def on_step_begin(self, args, state, control, **kwargs):
        self._at_boundary = self.trainer._sums_so_far()

    def on_step_end(self, args, state, control, **kwargs):
        self._at_boundary = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "train_loss" in logs:  # the last line's: of the whole run, whatever this process did of it
            logs["train_loss"] = self.trainer._total_loss_scalar / max(state.global_step, 1)

    def gathered(self) -> list[dict[str, float]]:
        """The sums of every rank as they were when the last step ended. Every rank calls it."""
        own = {name: float(value) for name, value in (self._at_boundary or self.trainer._sums_so_far()).items()}
        return gather_object([own]) if self.trainer.args.world_size > 1 else [own]


class Data:
    """Which rows a trainer trains on and measures with.

    Attributes:
        keys: what the rows are called in messages, those of `DATASETS` in order.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.keys: tuple[str, str] = DATASETS
        self._found: dict[str, Fingerprint] | None = None

    def found(self) -> dict[str, Fingerprint]:
        """The fingerprints, by dataset; made when first asked for."""
        if self._found is None:
            sets = {name: getattr(self.trainer, name) for name in DATASETS}
            self._found = {name: fingerprint(rows) for name, rows in sets.items() if rows is not None}
        return self._found

    def require_same(self, folder: Path) -> None:
        """Whether the checkpoint in `folder` was trained on these rows.

        Raises:
            CheckpointError: it was not, and that is not accepted.
        """
        try:
            was = read_object(folder / DATA_FILE, "") or {}
        except RunFileError as error:
            raise CheckpointError(f"{error}remove {folder} and resume from an earlier step") from error
        self.compare(folder, was)

    def compare(self, folder: Path, was: dict[str, Fingerprint]) -> set[str]:
        """`require_same_data` of what is in `folder`, which was trained with the rows of `was` (as of `found()`)."""
        both = (was, self.found())
        before, now = ({key: one.get(name) for key, name in zip(self.keys, DATASETS, strict=True)} for one in both)
        return require_same_data(folder, before, now, self.trainer.args.output_dir)


def require_same_data(
    folder: Path, was: dict[str, Fingerprint | None], now: dict[str, Fingerprint | None], out_dir: str | Path
) -> set[str]:
    """Compare the rows that a checkpoint was trained on with those of now, by key of the recipe (`sft.data`).

    Returns:
        The keys whose difference is accepted, which is noted in the stage's folder.

    Raises:
        CheckpointError: another difference; names the key, the rows before and now, and what to do.
    """
    changed = set()
    for key, fresh in now.items():
        told = None if fresh is None else difference(was.get(key), fresh)
        if told is None:
            continue
        accepts = is_accepted(key) or (key.endswith(".eval_data") and is_accepted(key.replace("eval_data", "data")))
        if not accepts:  # held-out rows may be a share of the others
            stage, _, rest = key.partition(".")
            ways = (
                f"go on with the new rows (--accept {key}), or start anew (--fresh {stage})" if rest else "start anew"
            )
            raise CheckpointError(f"{key}: {folder} was trained with {told}; put the old rows back, or {ways}")
        note(Path(out_dir), [{"key": key, "was": was[key], "is": fresh}])
        changed.add(key)
    return changed
