"""Every shipped recipe is valid, and says what it is in its first line."""

import re
from pathlib import Path

import pytest

from align.recipe import dump_recipe, load_recipe
from align.recipe.check import check_recipe, describe_plan
from align.recipe.shipped import copy_recipe, describe_recipes, find_recipe, shipped_recipes
from align.recipe.sources import stage_sources
from data_formats.errors import MissingFileError, StorageError

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NEEDS = pytest.mark.needs("bitsandbytes")
CHECKED = [pytest.param(file, marks=[NEEDS] if "qlora" in file.stem else []) for file in RECIPES]


def test_the_recipes_are_there():
    assert {"quickstart", "qwen_rlhf", "real_small"} <= set(shipped_recipes())
    assert sorted(shipped_recipes()) == [file.stem for file in RECIPES]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_loads_and_round_trips(file, tmp_path):
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    assert recipe.output_dir == f"runs/{file.stem}"
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("file", CHECKED, ids=lambda file: file.stem)
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_recipe_passes_the_check_once_its_files_are_there(file, world_size, tmp_path):
    recipe = load_recipe(file)
    for stage in recipe.stages:
        for _, source in stage_sources(recipe, stage):
            if not source.path.startswith("tinyworld:"):
                (tmp_path / source.path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / source.path).touch()
    checked = check_recipe(file, [f"data_root={tmp_path}"], world_size=world_size)
    assert describe_plan(checked, world_size)


def test_the_report_values_of_qwen_rlhf():
    recipe = load_recipe("qwen_rlhf")
    sft, rm, pmp, ppo = recipe.sft, recipe.rm, recipe.pmp, recipe.ppo
    assert (sft.learning_rate, sft.warmup_steps, sft.max_steps, sft.batch_size, sft.max_length) == (
        2e-6,
        1430,
        4000,
        128,
        2048,
    )
    assert (sft.weight_decay, sft.attention_dropout, sft.max_grad_norm) == (0.1, 0.1, 1.0)
    assert (sft.adam_beta1, sft.adam_beta2, sft.adam_epsilon) == (0.9, 0.95, 1e-8)
    for section in (pmp, rm):
        assert (section.learning_rate, section.batch_size, section.max_length) == (3e-6, 64, 2048)
        assert (section.num_train_epochs, section.max_steps, section.lr_scheduler_type) == (1, None, "constant")
    assert (ppo.rollout.num_generations, ppo.rollout.top_p, ppo.kl_coef, ppo.normalize_reward) == (
        2,
        0.9,
        0.04,
        "running_mean",
    )
    assert (ppo.critic_warmup_steps, ppo.cliprange_value) == (50, 0.15)
    assert (ppo.policy.learning_rate, ppo.critic.learning_rate) == (1e-6, 5e-6)


def test_the_report_values_of_the_finetunings():
    general, whole = load_recipe("qwen_sft").sft, load_recipe("qwen_rlhf").sft
    own = ("eval_steps",)  # only the recipe of SFT alone looks at the model on its way
    assert general.model_dump(exclude={*own}) == whole.model_dump(exclude={*own})
    maths, talks = load_recipe("qwen_sft_math").sft, load_recipe("qwen_sft_multiturn").sft
    assert (maths.max_length, maths.learning_rate, maths.max_steps) == (1024, 2e-5, 50_000)
    assert (talks.loss_reduction, talks.packing, talks.on_overlong) == ("session_mean", True, "truncate")
    for section in (maths, talks):
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "attention_dropout", "max_grad_norm"):
            assert getattr(section, key) == getattr(general, key)
        assert section.lr_scheduler_type == "constant_with_warmup"


def test_the_quickstart_keeps_the_ratio_of_the_learning_rates():
    ppo = load_recipe("quickstart").ppo
    assert ppo.critic.learning_rate == pytest.approx(5 * ppo.policy.learning_rate)
    assert (ppo.kl_coef, ppo.rollout.num_generations, ppo.rollout.top_p) == (0.04, 2, 0.9)


def test_descriptions():
    text = describe_recipes()
    assert re.search(r"^quickstart +The embedded default", text, re.MULTILINE)
    assert "#" not in text


def test_names_and_paths(tmp_path, monkeypatch):
    assert find_recipe("quickstart") == ROOT / "recipes" / "quickstart.yaml"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="is a folder"):
        find_recipe(tmp_path)
    (tmp_path / "quickstart").write_text("name: mine")  # a file of the user's wins over a shipped name
    assert find_recipe("quickstart") == Path("quickstart")


def test_copy_never_overwrites(tmp_path):
    file = copy_recipe("quickstart", tmp_path)
    assert file == tmp_path / "quickstart.yaml"
    assert load_recipe(file) == load_recipe("quickstart")
    file.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        copy_recipe("quickstart", tmp_path)
    assert file.read_text() == "mine"
    with pytest.raises(StorageError, match="cannot be written"):
        copy_recipe("quickstart", tmp_path / "no" / "folder.yaml")
    with pytest.raises(MissingFileError, match="did you mean 'quickstart'"):
        copy_recipe("quickstrt", tmp_path)
