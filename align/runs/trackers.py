"""What a stage writes to metrics.jsonl, sent to the trackers of `report_to`: TensorBoard, Weights & Biases, MLflow, ….

Every stage sends the same way, by accelerate's trackers; those that only transformers has are added as its callbacks.
The stages of a chain lie together: TensorBoard's files in `<output_dir>/tensorboard/<stage>`; with Weights & Biases a
run a stage, in a project named as the recipe and a group named as the output folder; with MLflow a run a stage in such
an experiment; with Trackio a run a stage in such a project.

A stage that goes on continues its curves in the same runs, which `trackers.json` in its folder names (TensorBoard, W&B,
MLflow and Trackio; others begin a new one). A figure of a step is sent once: what metrics.jsonl holds when a stage goes
on was sent by the process that wrote it, and is the same, but for times, when it is computed again.

A tracker that fails is left out after one warning, and training goes on.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.recipe.schema import Recipe
from align.recipe.trackers import SENDING
from align.runs.metrics import MetricsLog, plain
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.secrets import hide

LOG = logging.getLogger(__name__)
FILE, TENSORBOARD = "trackers.json", "tensorboard"
HEAD = ("step", "time")  # of a line of metrics.jsonl
_open: list[Trackers] = []  # of this process: who leaves a stage closes them


class Trackers:
    """The trackers of the run whose files lie in `out_dir`. For the first rank alone.

    They are started by the first figure, so that nothing is begun that does not train.
    """

    def __init__(self, recipe: Recipe, out_dir: Path):
        self.recipe, self.out_dir, self.root = recipe, Path(out_dir), Path(recipe.output_dir)
        lines = MetricsLog(self.out_dir / "metrics.jsonl").read() if recipe.report_to else []
        self._sent = {(line.get("step"), name) for line in lines for name in line}
        self._started: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Where the run lies below the output folder: `sft`, `rejection/rounds/1`."""
        inside = self.out_dir.is_relative_to(self.root)
        return self.out_dir.relative_to(self.root).as_posix() if inside else self.out_dir.name

    def send(self, step: int, figures: dict[str, Any]) -> None:
        """Send those of the `figures` of `step` that are numbers and were not sent before."""
        figures = {name: plain(value) for name, value in figures.items()}
        new = {name: value for name, value in figures.items() if isinstance(value, int | float) and name not in HEAD}
        new = {name: value for name, value in new.items() if (step, name) not in self._sent}
        if not new or not self.recipe.report_to:
            return
        if self._started is None:
            self._start()
        self._sent |= {(step, name) for name in new}
        for name in tuple(self._started):
            with self._kept_from_harm(name):
                self._started[name].log(_named_for(name, new), step=step)

    def close(self) -> None:
        """End them, so that the next run can start its own."""
        for name in tuple(self._started or ()):
            with self._kept_from_harm(name):
                self._started[name].finish()
        self._started = None

    def _start(self) -> None:
        _close_all()  # a run of MLflow or W&B cannot begin while another is under way
        _open.append(self)
        self._started = {}
        with self._kept_from_harm(FILE):
            noted = read_object(self.out_dir / FILE, "remove it, and the trackers begin new runs")
            if noted is None:  # begun anew: the curves of the stage that was here before are not gone on with
                noted = {"begun": time.strftime("%Y%m%d-%H%M%S")}
                for file in (self.root / TENSORBOARD / self.name).glob("events.*"):
                    file.unlink()
            for name in dict.fromkeys(self.recipe.report_to):
                if name in SENDING:
                    with self._kept_from_harm(name):
                        self._started[name] = self._begun(name, noted)
            if "mlflow" in self._started:
                noted["mlflow"] = self._started["mlflow"].tracker.info.run_id
            write_json(self.out_dir / FILE, noted)

    def _begun(self, name: str, noted: dict[str, Any]) -> Any:
        """The tracker, started; `noted`: what trackers.json says of the run."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        chain = self.root.resolve().name
        run = re.sub(r"[^\w.-]", "-", f"{chain}/{self.name}")
        unique = f"{run}-{noted['begun']}"
        project, options = self.recipe.name, {}
        match name:
            case "tensorboard":
                tracker = LOGGER_TYPE_TO_CLASS[name](self.name, self.root / TENSORBOARD)
                tracker.start()
                return tracker  # without `store_init_configuration`, which would make two more runs of it
            case "wandb":
                project = os.environ.get("WANDB_PROJECT", project)
                options = {"group": chain, "name": self.name, "id": unique, "resume": "allow", "dir": str(self.root)}
            case "mlflow":
                options = {"run_name": run, "run_id": noted.get("mlflow")}
            case "trackio":
                options = {"name": unique, "resume": "allow"}
        tracker = LOGGER_TYPE_TO_CLASS[name](project, **options)
        tracker.start()
        if name not in noted:  # MLflow refuses to change what a run was begun with, as when it is to be longer
            tracker.store_init_configuration(self._configuration())
        return tracker

    def _configuration(self) -> dict[str, Any]:
        """The keys of the recipe that the stage reads, by their dotted names."""
        stage = self.name.partition("/")[0]
        parts = {"seed", "model", stage if stage in self.recipe.stages else "seed"}
        return dict(_dotted(self.recipe.model_dump(mode="json", include=parts)))

    @contextmanager
    def _kept_from_harm(self, name: str) -> Iterator[None]:
        """Around what may fail: then the tracker is left out from here on, with a warning."""
        try:
            yield
        except Exception as error:
            (self._started or {}).pop(name, None)
            warn_of(name, error)


def _named_for(tracker: str, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures by names that the tracker takes; categories of the data are in some of ours."""
    if tracker != "mlflow":
        return figures
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in figures.items()}


def warn_of(name: str, error: Exception) -> None:
    """Say that a tracker failed, and what that means."""
    told = hide(" ".join(f"{type(error).__name__}: {error}".split()))
    LOG.warning("report_to: %s failed and is left out; training goes on, with metrics.jsonl (%s)", name, told)


def _dotted(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `a.b`: 1; a list as text."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _dotted(inner, f"{key}.{name}".removeprefix("."))
    elif value is not None:
        yield key, value if isinstance(value, int | float | str) else str(value)


@contextmanager
def closing_trackers() -> Iterator[None]:
    """Around a stage: what it started is ended with it, however that is."""
    try:
        yield
    finally:
        _close_all()


def _close_all() -> None:
    while _open:
        _open.pop().close()
