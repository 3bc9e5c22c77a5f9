"""What a recipe with `rounds` comes to: an ordinary recipe for what runs once, and one for each round.

A round's stages are those of the recipe; only where something lies is said anew. What an earlier stage or round made is
named by its path, and the comparisons that were judged are sources among the others. So each round's folder is a run
like any other, and what decides it is in its `recipe.yaml`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from align.recipe.collect_section import BEFORE, NEWEST, CollectSection
from align.recipe.fields import Source
from align.recipe.lineage import WITH_CHATML, Origin, init_origin, model_dir
from align.recipe.registry import REWARD_STAGES, ROUND_STAGES, STAGES
from align.recipe.reward_section import Rewarded
from align.recipe.schema import Recipe
from align.recipe.section import Section
from align.recipe.sources import WORLD, source_path

FEEDBACK, PAIRS = "feedback", "pairs.jsonl"
ROUND = re.compile(r"round-(\d+)(?:/(\w+))?")  # a round, or a stage of it, on a command line
SEED_STEP = 1000  # a policy that hardly moved would sample the same again with the same seed
MODEL_KEYS = ("init_from", "reward_from", "critic_from", "model_from")


def round_dir(recipe: Recipe, number: int) -> Path:
    """`<output_dir>/round-<number>`."""
    return Path(recipe.output_dir) / f"round-{number}"


def rounds_in(run: Path) -> list[Path]:
    """The folders of rounds in a run's folder, the first one first."""
    numbers = (one.name.removeprefix("round-") for one in run.glob("round-*") if one.is_dir())
    return [run / f"round-{number}" for number in sorted(int(text) for text in numbers if text.isdecimal())]


def round_stages(recipe: Recipe) -> tuple[str, ...]:
    """The stages of the recipe that run in every round."""
    return tuple(stage for stage in recipe.stages if stage in ROUND_STAGES)


def start_recipe(recipe: Recipe) -> Recipe:
    """What runs once, before the first round; perhaps no stage."""
    return recipe.model_copy(update=dict.fromkeys(ROUND_STAGES, None) | {"rounds": None, "collect": None})


def start_origin(recipe: Recipe) -> Origin:
    """The policy that the first round starts from."""
    return init_origin(recipe, _policies(recipe)[0])


def policy_after(recipe: Recipe, number: int) -> str:
    """Folder or hub id of the policy that round `number` leaves; of 0 that which the first round starts from."""
    if number == 0:
        origin = start_origin(recipe)
        if origin.kind == "stage":
            return str(model_dir(recipe, origin.value))
        chatml = recipe.model.tokenizer.add_chatml and origin.value == recipe.model.path
        return str(Path(recipe.output_dir) / WITH_CHATML) if chatml else origin.value
    return str(round_dir(recipe, number) / _policies(recipe)[-1] / "model")


def comparisons_of(recipe: Recipe, number: int) -> Path:
    """The file of what was judged in round `number`."""
    return round_dir(recipe, number) / FEEDBACK / PAIRS


def round_recipe(recipe: Recipe, number: int) -> Recipe:
    """The recipe of round `number`, from 1."""
    update: dict[str, Any] = dict.fromkeys(STAGES, None)
    update |= {stage: _in_round(recipe, stage, number) for stage in round_stages(recipe)}
    update |= {"rounds": None, "collect": collect_section(recipe, number), "output_dir": str(round_dir(recipe, number))}
    update |= {"name": f"{recipe.name}, round {number}", "seed": recipe.seed + SEED_STEP * number}
    if recipe.tinyworld is not None:
        world = recipe.tinyworld.seed
        update["tinyworld"] = recipe.tinyworld.model_copy(update={"seed": recipe.seed if world is None else world})
    if recipe.model.architecture is not None:  # the new model was made before
        update["model"] = recipe.model.model_copy(update={"architecture": None, "path": policy_after(recipe, 0)})
    return recipe.model_copy(update=update)


def collect_section(recipe: Recipe, number: int) -> CollectSection:
    """`collect` in round `number`: `newest` is the policy that it starts from, `before` that of the round before, in
    the first round the same."""
    policies = {NEWEST: policy_after(recipe, number - 1), BEFORE: policy_after(recipe, max(number - 2, 0))}
    sources = (
        one.model_copy(update={"model": policies.get(one.model) or _placed(recipe, one.model)})
        for one in recipe.collect.sources
    )
    placed = _relocated(recipe, recipe.collect)
    return placed.model_copy(update={"sources": tuple(dict.fromkeys(sources))})


def _policies(recipe: Recipe) -> list[str]:
    return [stage for stage in round_stages(recipe) if STAGES[stage].makes == "policy"]


def _in_round(recipe: Recipe, stage: str, number: int) -> Section:
    section, found = _relocated(recipe, getattr(recipe, stage)), dict[str, Any]()
    origin = init_origin(recipe, stage)
    if STAGES[stage].makes == "policy":
        if section.init_from is None and not (origin.kind == "stage" and origin.value in ROUND_STAGES):
            found["init_from"] = policy_after(recipe, number - 1)
    elif section.init_from is None and origin.kind == "stage":
        found["init_from"] = str(model_dir(recipe, origin.value))
    if STAGES[stage].records == "Comparison":
        newest = stage == "dpo" and section.newest_round is not False  # rows of its own may tell rounds of another run
        judged = (Source(path=_own(recipe, comparisons_of(recipe, one))) for one in range(1, number + 1))
        found["data"] = (*judged,)[-1:] if newest else (*section.data, *judged)
    if stage in REWARD_STAGES and section.center_scores and not section.reference_data and recipe.sft is not None:
        found["reference_data"] = tuple(_relocated(recipe, one) for one in recipe.sft.eval_data or recipe.sft.data)
    if isinstance(section, Rewarded) and not section.reward and section.reward_from is None and recipe.rm is None:
        found["reward_from"] = _placed(recipe, "pmp") if recipe.pmp is not None else None
    if stage == "dpo" and section.newest_round is None:
        found["newest_round"] = True
    if stage == "rejection" and section.keep_earlier:
        earlier = (str(round_dir(recipe, one) / stage) for one in range(1, number))
        found["earlier_from"] = (*section.earlier_from, *earlier)
    return section.model_copy(update=found)


def _placed(recipe: Recipe, name: str | None) -> str | None:
    """A model's name as a round's recipe says it: what runs before the rounds is a folder there."""
    return str(model_dir(recipe, name)) if name in STAGES and name not in ROUND_STAGES else name


def _own(recipe: Recipe, file: Path) -> str:
    """A file of the run as the path of a source, which may start at a data root."""
    return str(file if recipe.data_root is None else file.absolute())


def _relocated(recipe: Recipe, section: Any) -> Any:
    """A section as it stands in a round's recipe, whose folder is another: sets of the embedded world and models of
    stages before the rounds by their paths."""
    if isinstance(section, Source):
        own = section.path.startswith(WORLD)
        return section.model_copy(update={"path": _own(recipe, source_path(recipe, section))}) if own else section
    found: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name in MODEL_KEYS:
            found[name] = _placed(recipe, value)
        elif isinstance(value, Section):
            found[name] = _relocated(recipe, value)
        elif isinstance(value, tuple):
            found[name] = tuple(_relocated(recipe, one) if isinstance(one, Section) else one for one in value)
    return section.model_copy(update=found)
