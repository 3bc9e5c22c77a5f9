"""What a recipe with `rounds` comes to in each round: an ordinary recipe that names by its path what came before."""

import pytest

from align.recipe import RecipeError, dump_recipe, load_recipe
from align.recipe.check import describe_plan
from align.recipe.rounds import ROUND, round_recipe, start_recipe

ROUNDS = "rounds={num_rounds: 3, judge: people, eval_data: [tinyworld:eval_prompts]}"
COLLECT = "collect={data: [tinyworld:prompts], sources: [{model: newest}, {model: before, temperature: 0.7}]}"


@pytest.fixture
def recipe():
    return load_recipe("quickstart", [ROUNDS, COLLECT, "output_dir=runs/x"])


def test_what_runs_once_and_what_in_every_round(recipe):
    assert start_recipe(recipe).stages == ("base", "sft", "pmp")
    assert round_recipe(recipe, 1).stages == ("rm", "ppo")


@pytest.mark.parametrize("number", [1, 3])
def test_a_rounds_recipe_is_one_that_loads(recipe, number, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(round_recipe(recipe, number)))
    assert load_recipe(file) == round_recipe(recipe, number)
    assert "round-3" not in describe_plan(round_recipe(recipe, 1))


def test_what_came_before_is_named_by_its_path(recipe):
    first, second = (round_recipe(recipe, number) for number in (1, 2))
    assert (first.output_dir, second.seed, second.tinyworld.seed) == ("runs/x/round-1", 2000, 0)
    assert (first.ppo.init_from, second.ppo.init_from) == ("runs/x/sft/model", "runs/x/round-1/ppo/model")
    assert second.rm.init_from == first.rm.init_from == "runs/x/pmp/model"
    judged = [f"runs/x/round-{number}/feedback/pairs.jsonl" for number in (1, 2)]
    assert [source.path for source in second.rm.data] == ["runs/x/world/comparisons.jsonl", *judged]
    assert [source.path for source in second.ppo.ptx_data] == ["runs/x/world/documents.jsonl"]
    models = [[one.model for one in each.collect.sources] for each in (first, second)]
    assert models == [["runs/x/sft/model"] * 2, ["runs/x/round-1/ppo/model", "runs/x/sft/model"]]
    assert second.ppo.reward_from is None and second.rm.reference_data[0].path == "runs/x/world/demonstrations.jsonl"


def test_what_a_recipe_names_stays():
    dpo = "dpo={learning_rate: 1.0e-5, batch_size: 8, micro_batch_size: 8, num_train_epochs: 1, max_length: 64}"
    words = [ROUNDS, COLLECT, "ppo.init_from=sft", "rm=null", dpo, "data_root=/data", "output_dir=/runs/x"]
    second = round_recipe(load_recipe("quickstart", words), 2)
    assert (second.ppo.init_from, second.ppo.reward_from) == ("/runs/x/sft/model", "/runs/x/pmp/model")
    words = ["collect={data: [p.jsonl], sources: [{model: newest}]}", "rounds={num_rounds: 3, judge: people}"]
    third = round_recipe(load_recipe("llama3_sft_dpo", words), 3)
    assert third.dpo.newest_round is True and third.stages == ("dpo",)
    every = round_recipe(load_recipe("llama3_sft_dpo", [*words, "dpo.newest_round=false"]), 3)
    assert every.dpo.newest_round is False and len(every.dpo.data) == 4 and every.dpo.data[-1:] == third.dpo.data


def test_comparisons_may_all_come_from_the_rounds():
    second = round_recipe(load_recipe("quickstart", [ROUNDS, COLLECT, "rm.data=[]"]), 2)
    assert [source.path.split("/")[2] for source in second.rm.data] == ["round-1", "round-2"]
    for words in (["rm.data=[]"], [ROUNDS, COLLECT, "pmp.data=[]"]):
        with pytest.raises(RecipeError, match=r"(rm|pmp)\.data: is required: name comparisons"):
            load_recipe("quickstart", words)


def test_a_plain_number_of_rounds():
    recipe = load_recipe("quickstart", ["rounds=3", COLLECT])
    assert (recipe.rounds.num_rounds, recipe.rounds.by_people) == (3, True)
    for wrong in ("true", "-1", "some"):
        with pytest.raises(RecipeError, match="rounds"):
            load_recipe("quickstart", [f"rounds={wrong}", COLLECT])


def test_names_of_rounds():
    assert ROUND.fullmatch("round-2/ppo").groups() == ("2", "ppo") and ROUND.fullmatch("round-2")[2] is None
    assert not ROUND.fullmatch("round-x")
