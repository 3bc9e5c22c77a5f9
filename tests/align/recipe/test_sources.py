"""What is said of sources without reading them agrees with what the readers know."""

import data_formats
from align.recipe.schema import Recipe
from align.recipe.sources import FORMATS, KINDS, KINDS_OF_KEYS, WORLD_SETS, stage_sources
from data_formats import format_names


def test_the_format_names_are_those_of_the_readers():
    for kind, names in FORMATS.items():
        assert names == tuple(format_names(getattr(data_formats, kind)))
    assert set(FORMATS) == set(KINDS.values()) | set(KINDS_OF_KEYS.values())


def test_every_key_that_holds_sources_has_a_kind():
    common = {"data": ["a"], "max_length": 8, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1.0}
    more = {"eval_data": ["b"], "cleaning": {"decontamination": {"against": ["d"]}}}
    ppo = {"data": ["a"], "eval_data": ["b"], "ptx_data": ["c"], "num_iterations": 99}
    sections = dict.fromkeys(("base", "sft"), common | more)
    sections |= dict.fromkeys(("pmp", "rm"), common | more | {"reference_data": ["c"]})
    recipe = Recipe.model_validate(
        {"name": "t", "output_dir": "o", "model": {"path": "m"}, "ppo": ppo} | sections, strict=False
    )
    keys = {key.split(".")[-2] for stage in recipe.stages for key, _ in stage_sources(recipe, stage)}
    assert keys == {"data", "eval_data", *KINDS_OF_KEYS}
    assert set(KINDS) == set(recipe.stages)
    assert "eval_prompts" in WORLD_SETS
