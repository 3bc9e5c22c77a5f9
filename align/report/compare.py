"""Several runs laid over each other: what they reached and by how much they differ, in what their recipes do, curves.

Differences are those to the run that is named first. Figures that are not of one scale have none: a score of each run's
own reward model says nothing about another's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.evaluation.table import percent
from align.recipe import STAGES
from align.recipe.registry import REWARD_STAGES
from align.report.differences import Result, difference, result, same_rows
from align.report.headline import cell
from align.report.names import REWARD, judge_of, judged_by, section_of, stage_name
from align.report.overlay import COLORS, Side, overlays
from align.report.page import made_with
from align.report.svg import Picture, pictures
from align.report.template import template
from align.runs.run_files import Row, Run, StageFiles, clean, read_run
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.files import write_text
from align.runtime.paths import typed_path

MOST = len(COLORS)
OF_REWARDS = (
    ("accuracy", "accuracy on held-out pairs"),
    ("calibration_error", "expected calibration error"),
)
OF_POLICIES = (
    ("correct", "correct, greedy"),
    ("correct_sampled", "correct, temperature 1"),
    ("wins", "wins and half the ties against its start, greedy"),
    ("wins_sampled", "wins and half the ties against its start, temperature 1"),
    ("score_greedy", "score of the reward it was trained on, greedy"),
    ("score", "score of the reward it was trained on, temperature 1"),
    ("heldout_loss", "held-out loss, nats a token"),
    ("kl", "KL from the reference, nats a reply"),
    ("entropy", "entropy, nats a token"),
    ("end_rate", "replies that end by themselves"),
    ("distinct", "distinct replies"),
    ("reply_tokens", "tokens a reply"),
)
OF_ALL = (("seconds", "seconds"), ("peak_memory_gib", "peak memory, GiB"))
SHARES = ("accuracy", "calibration_error", "correct", "wins", "end_rate", "distinct")
SCORES = ("score", "score_greedy", REWARD)
IN_TOKENS = ("heldout_loss", "entropy", "reply_tokens")
_MISSING = object()


class ReportError(AlignError, ValueError):
    """Runs that cannot be laid over each other."""


@dataclass(frozen=True, slots=True)
class Cell:
    """`sure`: the interval leaves out 0."""

    text: str
    interval: str = ""
    sure: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; `stage` is empty after a stage's first."""

    stage: str
    measured: str
    figures: list[Cell]
    differences: list[Cell]


def build_comparison(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of several runs into `out`, by default a folder beside the first run; returns the page's path.

    Raises:
        MissingFileError: a folder that is not there, or holds no stage.
        ReportError: fewer than two runs, or more than can be told apart.
        StorageError: writing failed.
    """
    if not 2 <= len(folders) <= MOST:
        raise ReportError(f"2 to {MOST} runs can be laid over each other, not {len(folders)}")
    sides = read_sides([run_folder(folder) for folder in folders])
    first = typed_path(folders[0]).resolve()
    beside = first.parent / "-".join(["compare", *(side.name.replace("/", "-") for side in sides)])
    index = (beside if out is None else typed_path(out)) / "index.html"
    curves = {title: pictures(panels, f"curves{at}") for at, (title, panels) in enumerate(overlays(sides).items())}
    page = render_comparison(sides, curves)
    write_text(index, page)
    return index


def run_folder(typed: str | Path) -> Path:
    """The folder of a run, also where one of its stages' was named. Raises MissingFileError."""
    folder = typed_path(typed)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such run folder; name the output_dir of a recipe that has run")
    if folder.resolve().name in STAGES and (folder / "recipe.yaml").is_file():
        folder = folder.resolve().parent
    if not any((folder / stage).is_dir() for stage in STAGES):
        raise MissingFileError(
            f"{folder} holds no stage of a run ({', '.join(STAGES)}); name the output_dir of a recipe"
        )
    return folder


def read_sides(folders: Sequence[Path]) -> list[Side]:
    """The runs under the shortest ends of their paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    most = max(map(len, parts))
    length = next((n for n in range(1, most) if len({part[-n:] for part in parts}) == len(parts)), most)
    names = ["/".join(part[-length:]).strip("/") for part in parts]
    if len(set(names)) < len(names):
        raise ReportError(f"{names[0]}: the same run is named twice")
    return [
        Side(clean(name, 60), read_run(folder), color)
        for name, folder, color in zip(names, folders, COLORS, strict=False)
    ]


def render_comparison(sides: Sequence[Side], curves: Mapping[str, Sequence[Picture]]) -> str:
    """HTML of the page with the curves that were drawn, by heading."""
    table = list(lines(sides))
    return template("compare.html").render(
        sides=sides,
        outcome=outcome(sides, table),
        states={name: row for name in STAGES if any(row := [_state(side.run, name) for side in sides])},
        judges={name: found for name in STAGES if any(found := [judged(side.run, name) for side in sides])},
        made=_made(sides),
        doubts=list(doubts(sides)),
        lines=table,
        paired=[name for name in STAGES if same_rows(_stages(sides, name), name)],
        keys=differing_keys([side.run.recipe for side in sides]),
        recipes=[side.name for side in sides if not side.run.recipe],
        curves=curves,
    )


def _stages(sides: Sequence[Side], name: str) -> list[StageFiles]:
    return [side.run.stages[name] for side in sides]


def _made(sides: Sequence[Side]) -> dict[str, list[str]]:
    """What the runs were made with: name -> a value a run."""
    told = [dict(made_with(side.run)) for side in sides]
    return {name: [one.get(name, "") for one in told] for name in dict.fromkeys(name for one in told for name in one)}


def _state(run: Run, name: str) -> str:
    if name not in run.expected:
        return ""
    stage = run.stages[name]
    return f"unfinished, at step {stage.last_step}" if stage.state == "unfinished" else stage.state


def judge_named(run: Run, name: str) -> str:
    """The judge of a stage's replies by name, empty where there is none."""
    if not STAGES[name].samples:
        return ""
    judge = run.stages[name].summary.get("judge")
    return judge if isinstance(judge, str) else judge_of(run.stages[name]) or ""


def judged(run: Run, name: str) -> str:
    """Who judged the replies of a stage, in words; empty where nobody did."""
    return judged_by(run, run.stages[name]) if STAGES[name].samples else ""


def doubts(sides: Sequence[Side]) -> Iterator[str]:
    """Why figures of these runs may not be comparable, a sentence each."""
    for name, stage in STAGES.items():
        having = [side for side in sides if side.run.stages[name].summary]
        if len(having) < 2:
            continue
        words = {side.name: judged(side.run, name) for side in having}
        if len(set(filter(None, words.values()))) > 1:
            told = "; ".join(f"{who}: {judge or 'nobody'}" for who, judge in words.items())
            yield f"{name} was judged by different judges ({told}): wins and scores of judges cannot be compared"
        if stage.samples and not same_reward([side.run for side in having], name):
            own = " and judged by" if REWARD in {judge_named(side.run, name) for side in having} else ""
            told = "their scores have no scale in common, nor a difference"
            yield f"{name} was trained on{own} different rewards: {told}"
    measured = [name for name in STAGES if sum(bool(stage.evals) for stage in _stages(sides, name)) > 1]
    if unlike := [name for name in measured if not same_rows(_stages(sides, name), name)]:
        told = "measured on different held-out rows in each run, so that differences are partly theirs"
        yield f"{', '.join(unlike)}: {told}"
    if not _same_tokens([side.run for side in sides]):
        yield "The runs have different models or tokenizers: what is counted by the token has no difference"


def _same_tokens(runs: Sequence[Run]) -> bool:
    """Whether the recipes name the same model and tokenizer, as far as they can be read."""
    named = [[section_of(run, "model").get(key) for key in ("path", "tokenizer")] for run in runs if run.recipe]
    return all(one == named[0] for one in named)


def same_reward(runs: Sequence[Run], name: str) -> bool:
    """Whether what the stage was trained on is the same for all: named alike, and made by none of the runs."""
    told = set()
    for run in runs:
        origins, listed = run.stages[name].summary.get("origins"), section_of(run, name).get("reward")
        origin = origins.get("reward") if isinstance(origins, dict) else None
        made = origin.get("kind") == "stage" if isinstance(origin, dict) else not listed
        if made and any(run.recipe.get(stage) is not None for stage in REWARD_STAGES):
            return False
        told.add(json.dumps([origin, listed, section_of(run, name).get("reward_from")]))
    return len(told) == 1


def lines(sides: Sequence[Side]) -> Iterator[Line]:
    """The figures of every stage, and the differences to the first run's; the last stage, which counts, first."""
    for name, stage in reversed(STAGES.items()):
        first = name
        of_pairs = OF_REWARDS if stage.figures == "reward" else ()
        of_replies = _of_policies(sides, name) if stage.makes == "policy" else ()
        for key, words in (*of_pairs, *of_replies, *OF_ALL):
            found = [result(side.run, name, key) for side in sides]
            if not any(found):
                continue
            share, alike = key.removesuffix("_sampled") in SHARES, comparable(sides, name, key.removesuffix("_sampled"))
            differences = [_difference(found[0], other, share, alike) for other in found[1:]]
            yield Line(first, words, [_figure(one, share) for one in found], differences)
            first = ""


def outcome(sides: Sequence[Side], table: Sequence[Line]) -> str:
    """The first figure that differs or may differ, in a sentence; empty where none can be compared."""
    stage = ""
    for line in table:
        stage = line.stage or stage
        if not any(one.interval for one in line.differences):
            continue
        told = [f"{sides[0].name} {line.figures[0].text}"]
        for side, figure, found in zip(sides[1:], line.figures[1:], line.differences, strict=True):
            if found.interval:
                chance = "" if found.sure else ", which may be chance"
                told.append(f"{side.name} {figure.text} ({found.text} {found.interval}{chance})")
        rows = "" if same_rows(_stages(sides, stage), stage) else "; measured on different held-out rows"
        by = f"; judged by {judged(sides[0].run, stage)}" if line.measured.startswith("wins") else ""
        return f"{stage_name(stage)}, {line.measured}: {', '.join(told)}{rows}{by}."
    return ""


def comparable(sides: Sequence[Side], name: str, key: str) -> bool:
    """Whether a figure is on one scale in all runs: what a judge says where it is one judge, scores of one reward, what
    is counted by the token where tokens are the same."""
    runs = [side.run for side in sides if side.run.stages[name].summary]
    if key in IN_TOKENS:
        return _same_tokens(runs)
    judges = {judge_named(run, name) for run in runs}
    if key in SCORES or (key == "wins" and REWARD in judges):
        return same_reward(runs, name)
    return not (key == "wins" or key in judges) or len({judged(run, name) for run in runs}) == 1


def _of_policies(sides: Sequence[Side], name: str) -> Iterator[tuple[str, str]]:
    """The figures of a policy: what is right, who won, what the judges score, the rest."""
    judges = dict.fromkeys(judge_named(side.run, name) for side in sides).keys() - {"", *dict(OF_POLICIES)}
    for key, words in OF_POLICIES:
        yield key, words
        if key == "wins_sampled":
            for judge in sorted(judges):
                yield judge, f"{clean(judge, 40)}, greedy"
                yield f"{judge}_sampled", f"{clean(judge, 40)}, temperature 1"


def _figure(found: Result | None, share: bool) -> Cell:
    if found is None:
        return Cell("")
    show = percent if share else cell
    return Cell(show(found.value), "" if found.interval is None else _ends(found.interval, share))


def _difference(first: Result | None, other: Result | None, share: bool, alike: bool) -> Cell:
    if first is None or other is None or not alike:
        return Cell("" if alike or None in (first, other) else "–")
    found = difference(first, other)
    show = (lambda value: f"{100 * value:+.1f} points") if share else (lambda value: f"{value:+.4g}")
    if found.interval is None:
        return Cell(show(found.value))
    low, high = found.interval
    return Cell(show(found.value), _ends((low, high), share, "+"), low > 0 or high < 0)


def _ends(interval: tuple[float, float], share: bool, sign: str = "") -> str:
    return "[{}, {}]".format(*(f"{100 * end:{sign}.1f}" if share else f"{end:{sign}.3g}" for end in interval))


def differing_keys(recipes: Sequence[Row]) -> dict[str, list[str]]:
    """Key of a recipe -> what each run has there, of the keys that differ; what a run lacks as a whole is one row."""
    known = [recipe for recipe in recipes if recipe]
    found = dict(_differing("", [{**recipe, "output_dir": ""} for recipe in known]))
    rows = {key: iter(row) for key, row in found.items()}
    return {key: [next(row) if recipe else "" for recipe in recipes] for key, row in rows.items()}


def _differing(name: str, values: list[Any]) -> Iterator[tuple[str, list[str]]]:
    """Where `values`, one a run, are not the same: those within where all have parts, else the values themselves."""
    if all(value == values[0] for value in values):
        return
    parts = [_parts(value) for value in values]
    if None in parts:
        if any(parts):
            values = [_MISSING if value is None else value for value in values]
        yield clean(name, 200), [_value(value, "." not in name) for value in values]
        return
    for key in dict.fromkeys(key for one in parts for key in one):
        yield from _differing(f"{name}.{key}" if name else str(key), [one.get(key, _MISSING) for one in parts])


def _parts(value: Any) -> Row | None:
    if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else None


def _value(value: Any, is_section: bool) -> str:
    if value is _MISSING:
        return "(not there)"
    if isinstance(value, dict) and is_section:
        return "(there)"
    return clean(_without_nulls(value), 300) if value is not None else "null"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list) else value
