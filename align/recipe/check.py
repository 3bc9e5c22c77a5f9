"""What can be said about a recipe before anything heavy is imported: whether it can run, and the plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from align.recipe.batch import BatchPlan, batch_plan
from align.recipe.cleaning_check import cleaning_problems
from align.recipe.collect_section import BEFORE, NEWEST
from align.recipe.errors import RecipeError, path_problem
from align.recipe.judge_section import ComparisonJudgeSection
from align.recipe.lineage import Origin, has_model, inputs, model_dir, stage_dir, user_code
from align.recipe.load import inspect
from align.recipe.model_section import rounded_away
from align.recipe.registry import REWARD_STAGES, ROUND_STAGES, STAGES
from align.recipe.reward_section import FunctionPart, ModelPart, part_problems
from align.recipe.rollout_section import engine_problems
from align.recipe.rounds import MODEL_KEYS
from align.recipe.rounds_section import PeopleSection
from align.recipe.schema import Recipe
from align.recipe.selection_section import selection_problems
from align.recipe.sources import COLLECT, ROUNDS, source_problems, stage_sources
from align.recipe.trackers import tracker_problems
from align.recipe.user_code import code_problem
from align.runtime.errors import MissingFileError
from align.runtime.packages import is_installed, missing_package
from align.runtime.paths import typed_path
from align.runtime.table import table

_KEYS = {"model": "init_from", "policy": "init_from", "reward": "reward_from", "critic": "critic_from"}
_KEYS |= {"warm-up": "critic_warmup_from"}


def check_recipe(path: str | Path, overrides: Sequence[str] = (), *, world_size: int | None = None) -> Recipe:
    """Load and check everything that can be checked without torch. Raises RecipeError: wrong fields, else all else."""
    found = inspect(path, overrides, world_size=world_size)
    problems = list(found.problems)
    if found.recipe is not None:
        problems += run_problems(found.recipe, found.recipe.stages) + collect_problems(found.recipe)
        problems += rounds_problems(found.recipe)
    if problems or found.recipe is None:
        raise RecipeError(tuple(dict.fromkeys(problems)), found.source)
    return found.recipe


def run_problems(recipe: Recipe, stages: Iterable[str]) -> list[str]:
    """What would stop `stages` from running as one chain: missing files, impossible origins, blocked output folder."""
    stages = tuple(stages)
    nothing = not recipe.stages and recipe.collect is None
    problems = [f"has no stage; add at least one of {', '.join(STAGES)}"] if nothing else []
    blocked = next(
        (part for part in (Path(recipe.output_dir), *Path(recipe.output_dir).parents) if part.is_file()), None
    )
    if blocked:
        problems.append(f"output_dir: {blocked} is a file, not a folder")
    if recipe.model.path is not None:
        problems += path_problem("model.path", recipe.model.path)
    problems += tracker_problems(recipe)
    problems += _bitsandbytes_problems(recipe, stages)
    missing = [(stage, package) for stage in stages for package in STAGES[stage].needs if not is_installed(package)]
    problems += [missing_package(f"stage '{stage}'", package) for stage, package in missing]
    for stage in stages:
        problems += source_problems(recipe, stage)
        section = getattr(recipe, stage)
        if getattr(section, "cleaning", None) is not None:
            problems += cleaning_problems(section.cleaning, f"{stage}.cleaning", STAGES[stage].records)
        if STAGES[stage].samples and section is not None:
            problems += engine_problems(f"{stage}.rollout", section.rollout)
            for key, part in section.judges():
                problems += part_problems(f"{stage}.{key}", part)
        if section is not None and section.selection is not None:
            key = f"{stage}.selection"
            problems += selection_problems(key, section.selection, STAGES[stage].records, tuple(STAGES))
        named = user_code(recipe, stage).items()
        problems += [f"{key}: {problem}" for key, spec in named if (problem := code_problem(spec))]
        for role, origin in inputs(recipe, stage).items():
            problems += _origin_problems(recipe, stage, role, origin)
    return list(dict.fromkeys(problems))


def collect_problems(recipe: Recipe) -> list[str]:
    """What would stop `align collect`: missing files, a source that cannot write; no stage that is yet to run."""
    if recipe.collect is None:
        return []
    problems = source_problems(recipe, COLLECT)
    for at, one in enumerate(recipe.collect.sources):
        key, stage = f"collect.sources.{at}.model", STAGES.get(one.model)
        if one.model in (NEWEST, BEFORE) and recipe.rounds is not None:
            continue
        if recipe.rounds is not None and one.model in ROUND_STAGES:
            problems.append(f"{key}: '{one.model}' runs in every round; say {NEWEST} or {BEFORE}")
        elif one.model in (NEWEST, BEFORE):
            problems.append(f"{key}: '{one.model}' is said where a recipe has 'rounds'; name a stage, run or model")
        elif stage is None:
            of_rounds = () if recipe.rounds is None else (NEWEST, BEFORE)
            problems += path_problem(key, one.model, (*STAGES, *of_rounds))
        elif stage.makes != "policy":
            problems.append(f"{key}: '{one.model}' is a reward model and cannot write; name a policy")
        elif getattr(recipe, one.model) is None and not has_model(recipe, one.model):
            lies = stage_dir(recipe, one.model)
            problems.append(f"{key}: stage '{one.model}' is neither in this recipe nor finished in {lies}")
    if recipe.collect.engine == "vllm" and not is_installed("vllm"):
        problems.append(missing_package("collect.engine: 'vllm'", "vllm") + ", or use engine=hf")
    return problems


def rounds_problems(recipe: Recipe) -> list[str]:
    """What would stop the rounds: missing files, a judge that cannot be had."""
    if recipe.rounds is None:
        return []
    problems, judge = source_problems(recipe, ROUNDS), recipe.rounds.judge
    for stage in (stage for stage in ROUND_STAGES if getattr(recipe, stage) is not None):
        for key in MODEL_KEYS:
            if (name := getattr(getattr(recipe, stage), key, None)) in (NEWEST, BEFORE):
                problems.append(f"{stage}.{key}: '{name}' is said in collect; a stage starts from the newest unasked")
    for key, part in [*recipe.rounds.judge_parts()] or [("judge", judge)]:
        key = f"{ROUNDS}.{key}"
        if isinstance(part, ModelPart) and part.model_from in ROUND_STAGES:
            problems.append(f"{key}.model_from: '{part.model_from}' is made anew in every round; name another judge")
        if isinstance(part, FunctionPart | ComparisonJudgeSection) and (problem := code_problem(part.function)):
            problems.append(f"{key}.function: {problem}")
        if not isinstance(part, PeopleSection):
            problems += part_problems(key, part)
    return problems


def _bitsandbytes_problems(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """The keys whose values want bitsandbytes, where it is not installed."""
    if is_installed("bitsandbytes"):
        return []
    is_quantised = recipe.model.adapter == "qlora" and any(STAGES[stage].adapted for stage in stages)
    asking = ["model.adapter: 'qlora'"] if is_quantised else []
    for stage in stages:
        for role, part in getattr(recipe, stage).optimizers().items():
            if part.optimizer != "adamw":
                asking.append(f"{stage}.{role}{role and '.'}optimizer: '{part.optimizer}'")
    return [missing_package(asker, "bitsandbytes") for asker in asking]


def _origin_problems(recipe: Recipe, stage: str, role: str, origin: Origin) -> list[str]:
    section = getattr(recipe, stage)
    if role in _KEYS:
        key, named = f"{stage}.{_KEYS[role]}", getattr(section, _KEYS[role]) is not None
    elif role.startswith("selection."):
        key, named = f"{stage}.{role}", True
        role = "reward" if role.startswith("selection.quality") else "policy"
    else:  # a model among a reward's parts
        key, named = f"{stage}.{role}.model_from", dict(section.judges())[role].model_from is not None
        role = "reward"
    if role == "warm-up" and (problem := _warmup_problem(origin)):
        return [f"{key}: {problem}"]
    if origin.kind == "path":
        possible = REWARD_STAGES if role == "reward" else _before(stage)
        if named:
            return path_problem(key, origin.value, possible)
        return [_nothing(key, stage, role)] if role == "reward" else []  # model.path is no reward model
    if origin.kind == "new":
        made = not STAGES[stage].parents or (role == "critic" and not named)
        return [] if made else [_nothing(key, stage, role)]
    parent = origin.value
    if parent not in _before(stage):
        return [
            f"{key}: '{parent}' does not run before '{stage}' (the order is {', '.join(STAGES)}); name an earlier stage"
        ]
    if role == "reward" and parent not in REWARD_STAGES:
        known = ", ".join(REWARD_STAGES)
        return [f"{key}: '{parent}' is no reward model; name {known}, or a reward model's folder or hub id"]
    if role in ("model", "policy") and parent in REWARD_STAGES and stage not in REWARD_STAGES:
        return [f"{key}: '{parent}' is a reward model and cannot write; name base, sft, or a language model"]
    if getattr(recipe, parent) is None and not has_model(recipe, parent):
        return [f"{key}: stage '{parent}' is neither in this recipe nor finished in {stage_dir(recipe, parent)}"]
    return []


def _warmup_problem(origin: Origin) -> str | None:
    if origin.kind == "stage":
        told = f"stage '{origin.value}' leaves no replies for ppo; name rejection, or a file or folder"
        return None if origin.value == "rejection" else told
    return None if typed_path(origin.value).exists() else f"no such file or folder {origin.value}"


def _before(stage: str) -> tuple[str, ...]:
    names = tuple(STAGES)
    return names[: names.index(stage)]


def _nothing(key: str, stage: str, role: str) -> str:
    parents = STAGES[stage].parents if role in ("model", "policy") else tuple(reversed(REWARD_STAGES))
    parents = tuple(name for name in parents if "sft" not in STAGES[name].parents)  # those need a start themselves
    words = " or ".join(f"'{name}'" for name in parents)
    article = "an" if parents[0] in ("sft", "rm") else "a"
    return f"{key}: nothing to start from; add {article} {words} stage or name {key}"


def missing_inputs(recipe: Recipe, stage: str) -> list[str]:
    """Names of the stages whose finished model `stage` needs and which are not there, in running order."""
    needed = {origin.value for origin in inputs(recipe, stage).values() if origin.kind == "stage"}
    return [name for name in STAGES if name in needed and not has_model(recipe, name)]


def require_ready(recipe: Recipe, stage: str, command: str) -> None:
    """Raise unless `stage` can start by itself.

    Args:
        command: the recipe and overrides as the user typed them, for the command that the error names.

    Raises:
        RecipeError: a source is missing or an origin is impossible.
        MissingFileError: an input stage is not finished.
    """
    if getattr(recipe, stage) is None:
        raise RecipeError([f"has no stage '{stage}'; it has {', '.join(recipe.stages) or 'none'}"], recipe.name)
    problems = run_problems(recipe, [stage])
    if problems:
        raise RecipeError(problems, recipe.name)
    missing = missing_inputs(recipe, stage)
    if missing:
        folders = ", ".join(str(model_dir(recipe, name)) for name in missing)
        raise MissingFileError(
            f"{stage} starts from {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not finished "
            f"({folders} missing); run: align run {command}"
        )


def require_once(recipe: Recipe, stage: str) -> None:
    """Raises RecipeError for a stage that runs in each of the recipe's rounds, which the chain alone can tell apart."""
    if recipe.rounds is not None and stage in ROUND_STAGES:
        raise RecipeError(
            [
                f"'{stage}' runs in every round, and `align run RECIPE` goes round; once a round has its comparisons, "
                f"this script runs its stage by {Path(recipe.output_dir) / 'round-N' / 'recipe.yaml'}"
            ],
            recipe.name,
        )


def precision_warnings(recipe: Recipe) -> list[str]:
    """A sentence for every model that the recipe trains whole in bfloat16."""
    if recipe.model.dtype != "bfloat16":
        return []
    found = []
    for stage in recipe.stages:
        if STAGES[stage].adapted and recipe.model.adapter != "none":
            continue
        for role, optim in getattr(recipe, stage).optimizers().items():
            found.append(f"{stage}{role and '.'}{role}: {rounded_away(optim.learning_rate)}")
    return found


def describe_plan(recipe: Recipe, world_size: int | None = None) -> str:
    """The plan as text: stages with inputs and outputs, then the derived batch sizes."""
    rows = [
        (stage, _origins(recipe, stage), _data(recipe, stage), f"{stage_dir(recipe, stage)}/")
        for stage in recipe.stages
    ]
    plans = [batch_plan(recipe, stage, world_size) for stage in recipe.stages]
    tables = (table(("stage", "starts from", "data", "writes"), rows), describe_batches(plans))
    parts = [
        f"{recipe.name}: seed {recipe.seed}, output {recipe.output_dir}",
        *(tables if recipe.stages else ()),
        *(f"warning: {sentence}" for sentence in precision_warnings(recipe)),
    ]
    parts += filter(None, (getattr(recipe, stage).described() for stage in recipe.stages))
    if recipe.collect is not None:
        parts.append(f"collect: {recipe.collect.described()}")
        parts[-1] += "" if recipe.rounds is not None else "; `align collect RECIPE` writes them"
    parts += [recipe.rounds.described()] if recipe.rounds is not None else []
    return "\n\n".join(parts)


def describe_batches(plans: Sequence[BatchPlan]) -> str:
    """Batch plans as a table; every row multiplies out."""
    rows = [
        (
            plan.stage,
            plan.batch_size,
            STAGES[plan.stage].section.unit,
            plan.world_size,
            plan.rank_batch_size,
            plan.micro_batch_size,
            plan.accumulation,
        )
        for plan in plans
    ]
    return table(("stage", "batch_size", "of", "ranks", "per rank", "micro_batch_size", "accumulation"), rows)


def _origins(recipe: Recipe, stage: str) -> str:
    def word(origin: Origin) -> str:
        return "a new model" if origin.kind == "new" else origin.value

    found = inputs(recipe, stage)
    if set(found) == {"model"}:
        return word(found["model"])
    return ", ".join(f"{role} {word(origin)}" for role, origin in found.items())


def _data(recipe: Recipe, stage: str) -> str:
    names = list(dict.fromkeys(Path(source.name).name for key, source in stage_sources(recipe, stage)))
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
