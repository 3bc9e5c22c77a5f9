"""`--probe RUN`: what a real run of ppo reached of its card's peak, by logged phase.

The run's own phases are computed at the peak, from its recipe, its shapes and the lengths that it logged; what they
take there by what they took is the efficiency: of rollout for reading prompts, drawing and bandwidth, of score and
experience for passes without gradients, of update (without the push) for training. Collectives keep the stated one.
Left out are a run's first iterations, and those in which the critic alone was trained. One run cannot tell what grows
with the work from what a layer takes anyhow; two of unlike size can (`efficiency_of`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from align.plan.predict import ppo_models
from align.plan.propose import changed
from align.recipe import Recipe, load_recipe
from align.recipe.errors import RecipeError
from align.runtime.json_files import number, read_object, read_objects
from align.scale.cards import CARDS, Cluster, ScaleError
from align.scale.choose import StageScale, stage_scale
from align.scale.efficiency import PEAK, Efficiency
from align.scale.layout import Layout

WARM = 2  # iterations that a run begins with
PARTS = ("rollout", "score", "experience", "update")
A_SECOND_A_LAYER = replace(PEAK, draw_layer=1.0, pass_layer=1.0, train_layer=1.0)  # counts the layers that are started


@dataclass(frozen=True, slots=True)
class Probe:
    """A run that was measured.

    Attributes:
        recipe: the run's, with the lengths that it logged, as means, in place of the longest.
        seconds: medians by logged phase; `update` without the push.
        iterations: how many were counted.
    """

    run: str
    recipe: Recipe
    layout: Layout
    seconds: dict[str, float]
    iterations: int

    def at(self, efficiency: Efficiency) -> StageScale:
        """Its ppo stage at an efficiency."""
        return stage_scale(self.recipe, "ppo", self.layout, efficiency)

    def parts(self, efficiency: Efficiency) -> dict[str, float]:
        """Seconds that its logged phases would take at an efficiency, the push left out."""
        return self.at(efficiency).by_part(without="push")


def efficiency_of(probes: Sequence[Probe]) -> Efficiency:
    """What runs of one kind of card reached. Of several, of unlike size, also what a layer takes besides: the seconds
    of a part are fitted as ideal / share + layers * besides; where one of the two comes out negative, the largest run's
    share alone."""
    shares, starts = {}, {}
    made = [(probe.parts(PEAK), probe.parts(A_SECOND_A_LAYER), probe.seconds) for probe in probes]
    for part in PARTS:
        if all(ideal.get(part) and taken[part] for ideal, _, taken in made):
            points = [(ideal[part], started[part] - ideal[part], taken[part]) for ideal, started, taken in made]
            shares[part], starts[part] = _fitted(points)
    named = ", ".join(f"{probe.run}: {probe.iterations} iterations" for probe in probes)
    return Efficiency(
        training=shares["update"],
        passes=shares["experience"],
        scoring=shares.get("score", shares["experience"]),
        prefill=shares["rollout"],
        decode=shares["rollout"],
        bandwidth=shares["rollout"],
        step=0.0,
        hop=0.0,
        draw_layer=starts["rollout"],
        pass_layer=starts["experience"],
        train_layer=starts["update"],
        source=f"{named} on {probes[0].layout.cluster.words}",
    )


def _fitted(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(share of the peak, seconds a layer) by least squares of the relative errors.

    Args:
        points: seconds at the peak, layers that are started, seconds that it took.
    """
    largest = max(points)
    alone = largest[0] / largest[2], 0.0
    if len(points) == 1:
        return alone
    rows = [(ideal / taken, layers / taken) for ideal, layers, taken in points]
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:  # runs of one shape
        return alone
    inverse, start = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    return (1 / inverse, start) if inverse > 0 and start >= 0 else alone


def read_probe(run: Path) -> Probe:
    """A run of ppo, finished or not.

    Raises:
        ScaleError: it lacks what is needed, or too few iterations.
        RunFileError: a file of it cannot be read.
    """
    folder = run / "ppo"
    if not (folder / "metrics.jsonl").is_file():
        raise ScaleError(f"--probe {run}: no ppo/metrics.jsonl there; name the output_dir of a run of ppo")
    rows = [row for row in read_objects(folder / "metrics.jsonl", "run it again") if "seconds/update" in row]
    counted = [row for row in rows[WARM:] if not row.get("warming_up")]
    if not counted:
        raise ScaleError(
            f"--probe {run}: {len(rows)} iterations logged, and none after the first {WARM} trained the policy; "
            "run some 20 of them, with ppo.critic_warmup_steps=0"
        )
    summary = read_object(folder / "summary.json", "run it again") or {}
    made = summary.get("made_with", summary)
    ranks = int(number(made.get("processes")) or 1)
    try:
        recipe = load_recipe(folder / "recipe.yaml", world_size=ranks)
    except RecipeError as problem:
        raise ScaleError(f"--probe {run}: {problem}") from None
    measured = {part: median(_figure(row, f"seconds/{part}", run) for row in counted) for part in PARTS}
    measured["update"] -= median(number(row.get("seconds/sync")) or 0.0 for row in counted)
    layout = Layout(_cluster(made, run, ranks), ranks, "one" if ranks == 1 else "ddp")
    return Probe(run.name, _as_long_as(recipe, counted, ranks, run), layout, measured, len(counted))


def _as_long_as(recipe: Recipe, rows: list[dict[str, Any]], ranks: int, run: Path) -> Recipe:
    """The recipe with the mean lengths of these iterations."""
    replies = recipe.ppo.rollout_batch_size * recipe.ppo.rollout.num_generations
    reply = fmean(_figure(row, "length/mean", run) for row in rows)
    tokens = fmean(_figure(row, "tokens_per_second", run) * _figure(row, "seconds/total", run) for row in rows)
    prompt = max(1, round(tokens / replies - reply))
    lengths = {"ppo.rollout.max_completion_length": max(1, round(reply)), "ppo.rollout.max_prompt_length": prompt}
    lengths |= {"ppo.rollout.min_completion_length": 0}
    found = changed(recipe, lengths, ranks)
    if found is None or ppo_models(found) is None:
        raise ScaleError(f"--probe {run}: its recipe is not valid with the lengths that it logged ({lengths})")
    return found


def _figure(row: dict[str, Any], key: str, run: Path) -> float:
    value = number(row.get(key))
    if value is None:
        raise ScaleError(f"--probe {run}: an iteration of ppo/metrics.jsonl has no {key}; run it again")
    return value


def _cluster(made: dict[str, Any], run: Path, ranks: int) -> Cluster:
    """The card that a summary names: `2 × NVIDIA H200`, `CPU (x86_64), 2 cores`."""
    said = str(made.get("hardware") or "")
    if said.startswith("CPU"):
        return Cluster(CARDS["CPU"], ranks)
    for name, card in CARDS.items():
        series, _, size = name.partition("-")
        if re.search(rf"\b{series}\b", said) and (not size or f"{size}GB" in said):
            return Cluster(card, ranks)
    what = f"'{said}'" if said else "no hardware (an unfinished run?)"
    raise ScaleError(f"--probe {run}: ppo/summary.json names {what}; known cards are {', '.join(CARDS)}")
