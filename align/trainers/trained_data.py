"""Which rows a checkpoint was trained on, and whether a run that resumes has the same.

`data.json` of a supervised checkpoint: how many rows the run trains on and a hash of them (`align.data.fingerprint`);
PPO's state holds the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.data.fingerprint import Fingerprint, difference, fingerprint
from align.runs.acceptance import is_accepted, note
from align.runs.errors import CheckpointError
from align.runtime.json_files import RunFileError, read_object

DATA_FILE = "data.json"
DATASETS = ("train_dataset", "eval_dataset")


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
