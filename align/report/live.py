"""A run in progress, as its files tell it: which stage is at work, how far it is, its curves and its newest replies.

Nothing is asked of the run itself, so it does not matter who started it, or on which machine. Files are read as they
grow; a line that is half written waits for its other half, a file that was written anew is read anew.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from align.recipe import STAGES
from align.report.names import PART
from align.runs.reading import read_recipe
from align.runs.run_files import Row, Series, StageFiles, clean, number
from align.runtime.json_files import RunFileError, objects, parse_json

NEWEST = 12
"""How many replies are kept."""
TAIL = 1 << 20  # bytes at the end of a file of which the newest rows alone are wanted
OF_TRAINING = {
    "loss": "loss",
    "eval_loss": "loss, held out",
    "accuracy": "accuracy",
    "eval_accuracy": "accuracy, held out",
    "margin": "margin of scores",
    "grad_norm": "gradient norm",
}
OF_ROUNDS = {
    "score_single": "score of one sample",
    "score_best": "score of the best sample",
    "score_greedy": "score, held out",
}
OF_PPO = {
    "score/mean": "reward",
    "eval/score": "reward, held out",
    "eval/gold": "gold, held out",
    "eval/win_rate": "win rate, held out",
    "kl/reply": "KL, nats a reply",
    "entropy": "entropy, nats a token",
    "length/mean": "tokens a reply",
    "end_rate": "replies that end",
    "value/explained_variance": "explained variance",
    "value/loss": "value loss",
    "policy/clipped": "clipped tokens",
    "ptx/loss": "ptx loss",
    "seconds/total": "seconds an iteration",
}
CURVES = {"supervised": OF_TRAINING, "reward": OF_TRAINING, "rejection": OF_ROUNDS, "ppo": OF_PPO}


@dataclass(frozen=True, slots=True)
class LiveReply:
    """A prompt, the newest reply to it, and small figures beside it."""

    prompt: str
    reply: str
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run shows at one moment; `stage` is empty before the first has begun.

    Attributes:
        step, total: the last one that was logged, and of how many, where that is known.
        seconds: between two logged steps, the mean of the last ones; None before the second.
        logged: when the last figure was logged, seconds since 1970.
        finished, waiting: stages of the recipe that are done, and later ones that are yet to begin.
        done: whether nothing more is to come, as far as the recipe tells.
    """

    name: str
    stage: str = ""
    step: int = 0
    total: int | None = None
    seconds: float | None = None
    logged: float | None = None
    finished: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    done: bool = False
    curves: dict[str, Series] = field(default_factory=dict)
    replies: list[LiveReply] = field(default_factory=list)


class GrowingLines:
    """The JSON objects in a file that others append to.

    Args:
        newest: keep the last ones alone; of a long file no more than its end is read.
    """

    def __init__(self, path: Path, newest: int | None = None):
        self.path, self.newest = path, newest
        self.rows: list[Row] = []
        self._at, self._file = 0, None

    def read(self) -> list[Row]:
        """Those that are whole by now; none where there is no file."""
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._at:  # another file, or one that was cut
                    self.rows, self._file = [], found.st_ino
                    self._at = max(0, found.st_size - TAIL) if self.newest else 0
                file.seek(self._at)
                data = file.read()
        except OSError:
            self.rows, self._at, self._file = [], 0, None
            return self.rows
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        self.rows += objects(whole.decode("utf-8", errors="replace"))[0]
        if self.newest:
            self.rows = self.rows[-self.newest :]
        return self.rows


class LiveRun:
    """A run folder, or the folder of one of its stages, read again and again."""

    def __init__(self, folder: Path):
        alone = folder.resolve().name in STAGES and not any((folder / name).is_dir() for name in STAGES)
        self.root = folder.resolve().parent if alone else folder
        self.only = folder.resolve().name if alone else None
        self._files: dict[Path, GrowingLines] = {}
        self._recipes: dict[Path, tuple[float, Row]] = {}

    def look(self) -> Progress:
        """The run as it is now."""
        name = clean(self.root.resolve().name, 60)
        began = {stage: when for stage in STAGES if (when := self._touched(stage)) is not None}
        if self.only is not None:
            began = {stage: when for stage, when in began.items() if stage == self.only}
        if not began:
            return Progress(name)
        stage = max(began, key=began.__getitem__)
        recipe = self._recipe(stage)
        expected = [one for one in STAGES if one in began or (self.only is None and recipe.get(one) is not None)]
        finished = [one for one in expected if self._object(one, "summary.json")]
        after = expected[expected.index(stage) + 1 :]
        waiting = [one for one in after if one not in began]
        rows, samples = self._lines(stage, "metrics.jsonl"), self._lines(stage, "samples.jsonl", NEWEST)
        files = StageFiles(stage, self._object(stage, "summary.json"), rows, samples)
        return Progress(
            name,
            stage,
            files.last_step,
            total_steps(files, recipe),
            seconds_a_step(rows),
            _last_time(rows),
            finished,
            waiting,
            stage in finished and not waiting,
            curves_of(files),
            [reply for row in reversed(samples) if (reply := reply_of(row)) is not None],
        )

    def _touched(self, stage: str) -> float | None:
        """When the stage last logged a figure, as the figures say, which files that were copied do not; else when its
        files were written."""
        if (logged := _last_time(self._lines(stage, "metrics.jsonl"))) is not None:
            return logged
        for file in ("metrics.jsonl", "recipe.yaml"):
            with suppress(OSError):
                return (self.root / stage / file).stat().st_mtime
        return None

    def _recipe(self, stage: str) -> Row:
        path = self.root / stage / "recipe.yaml"
        try:
            written = path.stat().st_mtime
            if self._recipes.get(path, (0.0,))[0] != written:  # reading one takes longer than all the rest
                self._recipes[path] = written, read_recipe(path)
            return self._recipes[path][1]
        except (OSError, RunFileError):
            return {}

    def _object(self, stage: str, file: str) -> Row:
        with suppress(OSError):
            found = parse_json((self.root / stage / file).read_text(encoding="utf-8", errors="replace"))
            return found if isinstance(found, dict) else {}
        return {}

    def _lines(self, stage: str, file: str, newest: int | None = None) -> list[Row]:
        path = self.root / stage / file
        return self._files.setdefault(path, GrowingLines(path, newest)).read()


def _last_time(rows: list[Row]) -> float | None:
    return max((time for row in rows[-20:] if (time := number(row.get("time"))) is not None), default=None)


def total_steps(stage: StageFiles, recipe: Row) -> int | None:
    """How many steps the stage is to make: the recipe's own number, else by the epochs that are behind it."""
    section = recipe.get(stage.name)
    section = section if isinstance(section, dict) else {}
    for key in ("num_iterations", "rounds", "max_steps"):
        if (value := number(section.get(key))) is not None and value > 0:
            return int(value)
    epochs, (steps, behind) = number(section.get("num_train_epochs")), stage.series("epoch")
    if epochs is None or not steps or behind[-1] <= 0:
        return None
    return max(round(epochs * steps[-1] / behind[-1]), stage.last_step)


def seconds_a_step(rows: list[Row]) -> float | None:
    """The median time between the last steps that were logged, by step where several are logged at a time."""
    points = [(number(row.get("step")), number(row.get("time"))) for row in rows[-20:]]
    points = [point for point in points if None not in point]
    took = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points) if b[0] > a[0] and b[1] >= a[1]]
    return median(took) if took else None


def curves_of(stage: StageFiles) -> dict[str, Series]:
    """What is worth a look while a stage runs, in order: title -> steps and values. Single points are left out where
    there are curves."""
    keys = CURVES[STAGES[stage.name].figures]
    if keys is OF_PPO:
        logged = dict.fromkeys(key for row in stage.metrics[-50:] for key in row)
        parts = {key: f"reward: {clean(found[1], 40)}" for key in logged if (found := PART.fullmatch(key))}
        keys = {"score/mean": OF_PPO["score/mean"]} | parts | OF_PPO
    found = {title: stage.series(key) for key, title in keys.items()}
    least = 2 if any(len(series[0]) > 1 for series in found.values()) else 1
    return {title: series for title, series in found.items() if len(series[0]) >= least}


def reply_of(row: Row) -> LiveReply | None:
    """A row of `samples.jsonl`: a reply or, of a reward model, a pair. None for others."""
    notes = []
    for key in ("step", "score", "kl", "chosen_score", "rejected_score"):
        if (value := number(row.get(key))) is not None:
            notes.append(f"{key.replace('_', ' ')} {value:.4g}")
    if row.get("finished") is False:
        notes.append("cut off")
    if "reply" in row:
        return LiveReply(_text(row.get("prompt")), _text(row["reply"]), notes)
    if "chosen" in row and "rejected" in row:
        return LiveReply(_text(row.get("prompt")), f"{_text(row['chosen'])} | {_text(row['rejected'])}", notes)
    return None


def _text(value: Any) -> str:
    """A text on one line; of messages the last one."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return " ".join(clean(value, 1000).split())
