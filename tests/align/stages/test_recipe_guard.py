"""What a folder was made with, and what may change without starting anew."""

import json

import pytest

from align.stages import common, recipe_guard
from align.stages.chain import prepare_data, run_stage
from align.stages.clean import clear_chain
from examples.experiments.controls import require_unchanged
from tests.align.stages.small_chain import changed_keys, small_recipe, write_data

SIZES = {"documents": 6, "demonstrations": 5, "coarse_comparisons": 4, "comparisons": 4, "heldout_comparisons": 4}


def world_recipe(folder, **changed):
    sizes = {**SIZES, "prompts": 3, "eval_prompts": 2}
    world = {"tinyworld": sizes, "base__data": ["tinyworld:documents"], "sft__data": ["tinyworld:demonstrations"]}
    return small_recipe(folder, **(world | changed))


def test_the_world_of_another_seed_or_size_is_not_used_again(tmp_path):
    recipe = world_recipe(tmp_path)
    prepare_data(recipe, "base")
    world = tmp_path / "run" / "world"
    stamp = json.loads((world / "world.json").read_text(encoding="utf-8"))
    assert stamp == {"seed": 1, "tinyworld": {**SIZES, "prompts": 3, "eval_prompts": 2, "seed": None}}
    before = {path.name: path.read_bytes() for path in world.iterdir()}
    prepare_data(recipe, "sft")
    for key, value, words in (
        ("seed", 2, "seed was 1, is 2"),
        ("tinyworld__documents", 7, "tinyworld.documents was 6, is 7"),
    ):
        with pytest.raises(recipe_guard.RecipeChangedError, match=rf"world holds .*\({words}\).*--fresh"):
            prepare_data(world_recipe(tmp_path, **{key: value}), "sft")
    assert {path.name: path.read_bytes() for path in world.iterdir()} == before
    prepare_data(world_recipe(tmp_path, seed=2), "rm")  # reads files of the user's only
    clear_chain(recipe)
    assert not world.exists()
    prepare_data(world_recipe(tmp_path, seed=2), "base")
    assert (world / "documents.jsonl").read_bytes() != before["documents.jsonl"]


def test_a_fresh_stage_of_another_world_is_refused_before_it_is_removed(tmp_path):
    recipe = world_recipe(tmp_path)
    prepare_data(recipe, "sft")
    summary = tmp_path / "run" / "sft" / "summary.json"
    summary.parent.mkdir()
    summary.write_text("{}")
    with pytest.raises(recipe_guard.RecipeChangedError, match="another world"):
        run_stage(world_recipe(tmp_path, seed=2), "sft", fresh=True)
    assert summary.is_file()


def test_a_stage_killed_before_its_first_checkpoint_is_not_mixed_with_another_recipe(tmp_path):
    write_data(tmp_path)
    run_stage(small_recipe(tmp_path), "base")
    folder = tmp_path / "run" / "base"
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name not in ("recipe.yaml", "metrics.jsonl"):
            path.rmdir() if path.is_dir() else path.unlink()
    other = small_recipe(tmp_path, base__learning_rate=0.5)
    with pytest.raises(recipe_guard.RecipeChangedError, match=r"base\.learning_rate was 0\.01, is 0\.5"):
        require_unchanged(other, ("base",))
    (folder / "metrics.jsonl").unlink()  # a recipe that could not start, say for a wrong max_length, may be mended
    require_unchanged(other, ("base",))


def test_how_much_is_evaluated_may_change_and_how_much_is_trained_on_may_not(tmp_path):
    short = {"max_prompt_length": 8, "max_completion_length": 8}
    ppo = {"data": ["p.jsonl"], "num_iterations": 2, "critic_warmup_steps": 0, "rollout": short}
    run = tmp_path / "run"
    old = small_recipe(tmp_path, ppo=ppo, sft__data=[{"path": "demonstrations.jsonl", "limit": 9}])
    for stage in ("sft", "ppo"):
        common.open_folder(old, run / stage)
        (run / stage / "summary.json").write_text("{}")
    evaluation = {"num_samples": 3, "limit": 7, "every_steps": 5}
    data = [{"path": "demonstrations.jsonl", "limit": 9}]
    new = small_recipe(tmp_path, ppo=ppo | {"evaluation": evaluation}, sft__data=data, sft__eval_num_replies=9)
    require_unchanged(new, ("sft", "ppo"))
    at_once = small_recipe(tmp_path, ppo=ppo | {"rollout": short | {"batch_size": 3}}, sft__data=data)
    require_unchanged(at_once, ("ppo",))
    fewer = small_recipe(tmp_path, ppo=ppo, sft__data=[{"path": "demonstrations.jsonl", "limit": 8}])
    assert changed_keys(fewer, "sft", run / "sft") == ["sft.data.0.limit was 9, is 8"]


def test_a_new_token_in_a_url_is_no_change_and_another_address_is_one(tmp_path):
    short = {"max_prompt_length": 8, "max_completion_length": 8}
    ppo = {"data": ["p.jsonl"], "num_iterations": 2, "critic_warmup_steps": 0, "rollout": short}

    def at(url):
        return small_recipe(tmp_path, ppo=ppo | {"reward": [{"kind": "http", "url": url}]})

    folder = tmp_path / "run" / "ppo"
    common.open_folder(at("https://host/a?token=secret1"), folder)
    file = folder / "recipe.yaml"
    assert "secret1" not in file.read_text()
    for text in (file.read_text(), file.read_text().replace("***", "secret1")):  # and as it was written before
        file.write_text(text)
        assert changed_keys(at("https://host/a?token=secret2"), "ppo", folder) == []
        (change,) = changed_keys(at("https://host/b?token=secret2"), "ppo", folder)
        assert change == "ppo.reward.0.url was https://host/a?token=***, is https://host/b?token=***"
    harmless = small_recipe(
        tmp_path, ppo=ppo | {"reward": [{"kind": "http", "url": "https://host/a?token=x"}], "on_reward_error": "mask"}
    )
    assert changed_keys(harmless, "ppo", folder) == []
    judged = ppo | {"reward": [{"kind": "http", "url": "https://host/a"}], "eval_data": ["p.jsonl"]}
    common.open_folder(small_recipe(tmp_path, ppo=judged), folder)
    another = small_recipe(tmp_path, ppo=judged | {"judge": {"kind": "length", "maximum": 3}})
    assert changed_keys(another, "ppo", folder) == []  # who judges changes nothing of what is made


def test_the_base_of_another_adapter_is_the_same_base(tmp_path):
    old, new = small_recipe(tmp_path), small_recipe(tmp_path, model__adapter="lora", model__lora={"rank": 2})
    for stage in ("base", "sft"):
        common.open_folder(old, tmp_path / "run" / stage)
    assert changed_keys(new, "base", tmp_path / "run/base") == []
    assert changed_keys(new, "sft", tmp_path / "run/sft") == [
        "model.adapter was none, is lora",
        "model.lora.rank was 16, is 2",
    ]
