"""Reads a run folder without trusting it: what is missing, torn or of another type is left out and named.

Files read: `<output_dir>/summary.json` and `tax.json` and, per stage, `metrics.jsonl`, `summary.json`,
`samples.jsonl`, `eval.jsonl`, `recipe.yaml`. Numbers that are not finite count as missing (`number`); text is made fit
for a page (`clean`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align.recipe import STAGES, RecipeError
from align.recipe.text import parse
from align.runtime.files import is_newer
from align.runtime.json_files import Row, number, objects, parse_json
from align.runtime.secrets import hide
from align.runtime.terminal import excerpt

Series = tuple[list[float], list[float]]
MAX_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class StageFiles:
    """What one stage left; everything may be empty."""

    name: str
    summary: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    recipe_text: str = ""
    replies: list[Row] = field(default_factory=list)

    @property
    def state(self) -> str:
        """`finished`, `unfinished` or `not run`."""
        return "finished" if self.summary else "unfinished" if self.metrics or self.recipe_text else "not run"

    @property
    def of_policies(self) -> list[Row]:
        """The replies of the policy before and after, a row a prompt; those of dpo stand beside its pairs, in a file of
        their own."""
        return self.replies or self.evals

    @property
    def last_step(self) -> int:
        """The last step that was logged, 0 before the first."""
        return int(max((number(line.get("step")) or 0 for line in self.metrics), default=0))

    def series(self, key: str) -> Series:
        """Steps and values of one logged figure, in order of steps; of a step logged twice the last counts."""
        points = {
            step: value
            for line in self.metrics
            if (step := number(line.get("step"))) is not None and (value := number(line.get(key))) is not None
        }
        return sorted(points), [points[step] for step in sorted(points)]


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder. `recipe` holds plain values, `{}` when no stage kept one that can be read; `tax` is what
    `align eval --tax` left."""

    name: str
    summary: Row
    stages: dict[str, StageFiles]
    recipe: Row
    problems: list[str]
    tax: Row = field(default_factory=dict)

    @property
    def expected(self) -> list[str]:
        """The stages this chain has, in the order they run: those of its recipe and those that left something."""
        left = [name for name, stage in self.stages.items() if stage.state != "not run"]
        return [name for name in STAGES if name in left or self.recipe.get(name) is not None]

    def shown_in(self, section: str) -> list[StageFiles]:
        """What the stages left whose metrics this section of the page draws."""
        return [stage for name, stage in self.stages.items() if STAGES[name].figures == section]


def read_run(root: Path) -> Run:
    """Everything in `root` that the report shows."""
    problems: list[str] = []
    whole = _object(root / "summary.json", problems)
    stages = {}
    for name in STAGES:
        stage, kept = read_stage(root / name, problems), whole.get(name)
        stages[name] = stage if stage.summary or not isinstance(kept, dict) else replace(stage, summary=kept)
    kept_by = [stage for stage in reversed(stages.values()) if stage.recipe_text]
    recipe = next((found for stage in kept_by if (found := _recipe(stage.name, stage.recipe_text, problems))), {})
    name = whole.get("name") or recipe.get("name") or root.resolve().name
    tax = _tax(root / "tax.json", problems)
    return Run(clean(name), whole, stages, recipe, list(dict.fromkeys(problems)), tax)


def _tax(file: Path, problems: list[str]) -> Row:
    """What `align eval --tax` measured; nothing where a policy has been trained again since."""
    policies = (file.parent / name / "model" for name, stage in STAGES.items() if stage.makes == "policy")
    if file.is_file() and any(not is_newer(file, one) for folder in policies for one in folder.glob("*")):
        problems.append(
            f"{file.name} was measured before a policy that is there now: align eval --tax measures it again"
        )
        return {}
    return _object(file, problems)


def read_stage(folder: Path, problems: list[str]) -> StageFiles:
    """What a stage left in `folder`; `problems` gets a sentence for each file that is not whole."""
    return StageFiles(
        folder.name,
        _object(folder / "summary.json", problems),
        *(_lines(folder / file, problems) for file in ("metrics.jsonl", "samples.jsonl", "eval.jsonl")),
        recipe_text=hide(_text(folder / "recipe.yaml", problems)),
        replies=_lines(folder / "replies.jsonl", problems),
    )


def clean(value: Any, limit: int = MAX_CHARACTERS) -> str:
    """Text for a page or a figure: control characters become visible, lone surrogates �, `limit` characters at most."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return "".join(map(_visible, excerpt(text, limit).replace("\r\n", "\n")))


def _visible(letter: str) -> str:
    code = ord(letter)
    if code < 0x20 and letter not in "\n\t":
        return chr(0x2400 + code)
    if 0xD800 <= code <= 0xDFFF or 0x7F <= code < 0xA0 or code & 0xFFFF >= 0xFFFE:
        return "�"
    return letter


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{_short(path)} cannot be read ({error.strerror})")
        return ""


def _object(path: Path, problems: list[str]) -> Row:
    text = _text(path, problems)
    found = parse_json(text)
    if text and not isinstance(found, dict):
        problems.append(f"{_short(path)} is not a whole JSON object and was left out")
    return found if isinstance(found, dict) else {}


def _lines(path: Path, problems: list[str]) -> list[Row]:
    rows, others = objects(_text(path, problems))
    if others:
        problems.append(f"{_short(path)}: {others} of {len(rows) + others} lines are no JSON objects")
    return rows


def _recipe(name: str, text: str, problems: list[str]) -> Row:
    try:
        values, _ = parse(text, f"{name}/recipe.yaml")
    except RecipeError as error:
        problems.append(f"{name}/recipe.yaml cannot be read: {str(error).splitlines()[0]}")
        return {}
    return values if isinstance(values, dict) else {}


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
