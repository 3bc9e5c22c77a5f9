"""What is said of sources without reading them agrees with what the readers know."""

import json

import pytest

import data_formats
from align.recipe.check import check_recipe
from align.recipe.errors import RecipeError
from align.recipe.load import inspect
from align.recipe.registry import STAGES
from align.recipe.schema import Recipe
from align.recipe.sources import FORMATS, KINDS_OF_KEYS, WORLD_SETS, stage_sources
from data_formats import format_names


def test_the_format_names_are_those_of_the_readers():
    for kind, names in FORMATS.items():
        assert names == tuple(format_names(getattr(data_formats, kind)))
    assert set(FORMATS) == {stage.records for stage in STAGES.values()} | set(KINDS_OF_KEYS.values())


def test_every_key_that_holds_sources_has_a_kind():
    common = {"data": ["a"], "max_length": 8, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1.0}
    more = {"eval_data": ["b"], "cleaning": {"decontamination": {"against": ["d"]}}}
    ppo = {"data": ["a"], "eval_data": ["b"], "ptx_data": ["c"], "num_iterations": 99}
    sections = dict.fromkeys(("base", "sft"), common | more)
    sections |= {"dpo": common | more} | dict.fromkeys(("pmp", "rm"), common | more | {"reference_data": ["c"]})
    sections["rejection"] = common | more | {"rollout": {"max_prompt_length": 4, "max_completion_length": 4}}
    recipe = Recipe.model_validate(
        {"name": "t", "output_dir": "o", "model": {"path": "m"}, "ppo": ppo} | sections, strict=False
    )
    keys = {key.split(".")[-2] for stage in recipe.stages for key, _ in stage_sources(recipe, stage)}
    assert keys == {"data", "eval_data", *KINDS_OF_KEYS}
    assert tuple(STAGES) == recipe.stages
    assert "eval_prompts" in WORLD_SETS


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"format": "text"}, "base.data.0: needs 'path' (a file) or 'hub'"),
        ({"path": "a", "hub": "o/n"}, "base.data.0.hub: a source is either a file"),
        ({"path": "hub:o/n"}, "base.data.0.path: is a file; for a dataset of the hub write hub: o/n"),
        ({"path": "a", "hub_split": "test"}, "base.data.0.hub_split: says how a dataset of the hub is read"),
        ({"path": "a", "streaming": False}, "base.data.0.streaming: says how a dataset of the hub is read"),
        ({"hub": "o/n", "split": "lines"}, "base.data.0.split: cuts text files into documents"),
        ({"hub": "o/n/x y"}, "base.data.0.hub: 'o/n/x y' is neither"),
        ({"hub": "./nowhere"}, "base.data.0.hub: no such folder ./nowhere"),
        ({"hub": "o/n", "weight": 1}, "base.data.1.weight: either all sources of a list have a weight or none"),
        ({"hub": "o/n"}, None),
    ],
)
def test_hub_sources_and_weights_are_checked_without_reading(tmp_path, source, problem):
    section = {"max_length": 8, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1.0}
    data = [source, "hub:o/other"]
    model = {"architecture": {}}
    path = tmp_path / "r.yaml"
    path.write_text(
        json.dumps({"name": "t", "output_dir": "o", "model": model, "base": section | {"data": data}}), encoding="utf-8"
    )
    if problem is None:
        made = check_recipe(path)
        assert [item.name for item in made.base.data] == ["hub:o/n", "hub:o/other"]
        return
    with pytest.raises(RecipeError) as caught:
        check_recipe(path)
    assert any(problem in found for found in caught.value.problems), caught.value.problems


def test_the_limit_of_a_row_is_one_of_files():
    problems = inspect("quickstart", ["sft.data=[{hub: a/b, max_row_mb: 3}]"]).problems
    assert [problem for problem in problems if "sft.data.0.max_row_mb: bounds the rows of a file" in problem]
    recipe = inspect("quickstart", ["sft.data=[{path: a.jsonl, max_row_mb: 3}, b.jsonl]"]).recipe
    assert [source.max_row_mb for source in recipe.sft.data] == [3, 64]
