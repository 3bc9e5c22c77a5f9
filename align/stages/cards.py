"""The model cards of a stage: its recipe, its data and its figures, from what lies in its folder when it is done.

Keys that the user left at their defaults are not told, nor anything of the machine: of an absolute path the last part
remains, and secrets are hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from align.models import card
from align.models.card import hub_id
from align.recipe import STAGES, Recipe
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.recipe.sources import stage_sources
from align.recipe.text import dump
from align.report.headline import cell, headline
from align.report.mixture import in_words
from align.report.names import reward_named
from align.runtime.card import CARD, read_card
from align.runtime.errors import reason_of
from align.runtime.files import is_newer
from align.runtime.json_files import number
from align.runtime.ranks import is_main
from align.runtime.secrets import hide
from align.stages.common import LOG, Summary, read_summary

MODELS = ("model", "critic", "ema", "best/model", "rounds/*/model")  # what stages leave, below their folder
COUNTS = ("rows", "prompts", "heldout_rows", "eval_prompts", "pairs", "documents", "tokens", "ptx_blocks", "references")
WORDS = {"pairs": "held-out pairs", "heldout_rows": "held-out rows", "eval_prompts": "held-out prompts"}
INDEX = {  # of the model-index: a key of the summary -> the metric's type and name
    "heldout_loss": ("loss", "held-out loss, nats a token"),
    "accuracy": ("accuracy", "accuracy on held-out pairs"),
    "score": ("reward", "{reward}'s score, temperature 1"),
    "score_greedy": ("reward", "{reward}'s score, greedy"),
    "kl": ("kl", "KL from the reference, nats a reply"),
}
LAST = "Of the last model of the stage."


def write_cards(recipe: Recipe, stage: str) -> None:
    """Write the card of every model that a finished stage left, and of its controls, unless it is newer than its
    figures."""
    if not is_main():
        return
    for name in (stage, *STAGES[stage].beside):
        folder = stage_dir(recipe, name)
        summary = read_summary(folder)
        if summary is None:
            continue
        for model in (path for pattern in MODELS for path in sorted(folder.glob(pattern)) if path.is_dir()):
            if is_newer(model / CARD, folder / "summary.json"):
                continue
            try:
                _write(recipe, stage, name, summary, model, model.relative_to(folder).as_posix())
            except Exception as error:  # the stage is finished, whatever a card lacks or a foreign template raises
                LOG.warning("%s: the model card could not be written: %s", name, reason_of(error))


def _write(recipe: Recipe, stage: str, name: str, summary: Summary, model: Path, which: str) -> None:
    told = "" if which == "model" else f" ({which.removesuffix('/model')})"
    base = hub_id(recipe.model.path)
    found = {
        "base_model": base,
        "license": _licence(recipe.model.path),
        "datasets": sorted({source.hub for _, source in stage_sources(recipe, stage) if hub_id(source.hub)}),
        "tags": [stage],
    }
    if which == "model" and (results := list(_results(stage, summary))):
        found |= {"model_name": f"{recipe.name}, {name}", "eval_results": results}
    if recipe.model.adapter != "none" and STAGES[stage].adapted:  # the folder knows better what it stands on
        found.pop("base_model")
    figures = _figures(stage, summary)
    sections = {
        "Recipe": _recipe(recipe, stage),
        "Data": _data(recipe, stage, summary),
        "Figures": figures if which == "model" else f"{LAST}\n\n{figures}",
    }
    noted = summary.get("origin") or (summary.get("origins") or {}).get("policy")  # a control has one of its own
    start = Origin(**noted) if noted else init_origin(recipe, stage)
    words = {"new": "random weights", "stage": f"the model of stage `{start.value}`"}
    made = f"Trained by the stage `{stage}` of `align`, from "
    made += f"{words.get(start.kind, f'`{_shown(start.value)}`')}."
    card.write(model, f"{recipe.name}, {name}{told}", made, sections=sections, metadata=found, speaks=stage != "base")


def _licence(path: str | None) -> str | None:
    """What the card in the folder of the pretrained model says."""
    return None if path is None or hub_id(path) else read_card(Path(path).expanduser() / CARD)[0].get("license")


def _recipe(recipe: Recipe, stage: str) -> str:
    values = recipe.model_dump(mode="json", exclude_defaults=True, include={"seed", "model", stage})
    text = hide(dump({"seed": recipe.seed} | _shown(values)))
    return f"What is not at its default:\n\n```yaml\n{text.strip()}\n```"


def _shown(value: Any) -> Any:
    """Plain data with the last part alone of every absolute path."""
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or value.startswith("~"):
            return f"…/{kind(value).name}"
    return value


def _data(recipe: Recipe, stage: str, summary: Summary) -> str:
    lines = ["| key | source |", "|---|---|"]
    lines += [f"| `{key}` | {_plain(_shown(source.name))} |" for key, source in stage_sources(recipe, stage)]
    counted = [f"{summary[key]:,} {WORDS.get(key, key)}" for key in COUNTS if isinstance(summary.get(key), int)]
    for key, what in (("unread_rows", "not read"), ("dropped_rows", "left out")):
        reasons = summary.get(key) or {}
        counted += [f"{count:,} rows {what}: {reason}" for reason, count in reasons.items()]
    text = "\n".join(lines) + (f"\n\nUsed: {'; '.join(counted)}." if counted else "")
    drawn = [_plain(_shown(one)) for one in in_words(summary)]
    return text + (f"\n\nDrawn: {'; '.join(drawn)}." if drawn else "")


def _figures(stage: str, summary: Summary) -> str:
    rows = [(what, cell(before), cell(after)) for what, before, after in headline(stage, summary)]
    rows += [(f"{what}, gain with its 95 % interval", "", interval) for what, interval in _gains(summary)]
    if not rows:
        return ""
    table = ["| measured | before | after |", "|---|---|---|"]
    table += [f"| {_plain(what.strip())} | {_plain(before)} | {_plain(after)} |" for what, before, after in rows]
    return "\n".join(table) + f"\n\n{_judged(summary)}"


def _judged(summary: Summary) -> str:
    judge, told = summary.get("judge"), []
    if "accuracy" in summary:
        told.append("Accuracies are shares of held-out pairs, in brackets their 95 % Wilson intervals.")
    if judge is not None:
        nothing = "which nothing was trained on" if judge == "gold" else "the reward that it was trained on"
        words = _plain(summary.get("judged_by") or f"`{judge}`, {nothing}")
        told.append(f"Replies to held-out prompts are judged by {words}.")
    return " ".join(told)


def _gains(summary: Summary) -> Iterator[tuple[str, str]]:
    for key, value in summary.items():
        if isinstance(value, dict) and value.keys() >= {"difference", "low", "high"}:
            figures = [number(value[name]) for name in ("difference", "low", "high")]
            if None not in figures:
                name, _, sampled = key.partition("_gain")
                how = "temperature 1" if sampled else "greedy"
                yield f"{name or key}, {how}" if "_gain" in key else key, "{:.3g} [{:.3g}, {:.3g}]".format(*figures)


def _results(stage: str, summary: Summary) -> Iterator[dict[str, Any]]:
    """The figures of the model-index."""
    named, judge = dict(INDEX), summary.get("judge")
    reward = summary.get("rewarded_by") or reward_named({}, summary)
    if judge is not None:
        named |= {judge: ("reward", f"{judge}, greedy"), f"{judge}_sampled": ("reward", f"{judge}, temperature 1")}
    figures = {key: (kind, what, summary.get(key), _bounds(summary, f"{key}_")) for key, (kind, what) in named.items()}
    for decoding, rates in (summary.get("win_rates") or {}).items():
        who = "{second} against {first}, {decoding}, judged by {judged_by}".format(decoding=decoding, **rates)
        figures[decoding] = ("win_rate", f"wins and half of the ties of {who}", rates["win_share"], _bounds(rates))
    task = "text-classification" if STAGES[stage].makes == "reward" else "text-generation"
    for kind, what, told, bounds in figures.values():
        if (value := number(told)) is None:
            continue
        args = None if None in bounds else {"interval": bounds, "confidence": 0.95}
        yield {
            "task_type": task,
            "dataset_type": "held-out",
            "dataset_name": "held-out rows of the run",
            "metric_type": kind,
            "metric_name": what.replace("{reward}", reward),
            "metric_value": round(value, 6),
            "metric_args": args,
        }


def _bounds(figures: dict[str, Any], prefix: str = "") -> list[float | None]:
    """The ends of a figure's interval, None where it has none."""
    return [number(figures.get(f"{prefix}{side}")) for side in ("low", "high")]


def _plain(text: Any) -> str:
    """A cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
