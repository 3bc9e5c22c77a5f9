"""What `--fresh` removes and what it leaves: laid out by hand, nothing is trained."""

import pytest

from align.recipe.sources import LABELLED_SETS
from align.stages import world
from align.stages.chain import run_stage
from align.stages.clean import clear_chain, clear_stages
from align.stages.recipe_guard import descendants
from tests.align.stages.small_chain import small_recipe, write_data

SIZES = {"documents": 6, "demonstrations": 5, "coarse_comparisons": 4, "comparisons": 4, "heldout_comparisons": 4}
MADE = ("base/summary.json", "sft/model/x", "pmp/summary.json", "rm/summary.json", "rm_without_pmp/summary.json")
WORLD = ("world/world.json", "world/documents.jsonl")
LABELLED = tuple(f"world/{name}{end}" for name in LABELLED_SETS for end in (".jsonl", ".info.json"))
CONTROLS = (
    *("controls/summary.json", "controls/good_demonstrations.jsonl", "controls/sft_good/summary.json"),
    *("controls/rm_with_pmp_0.001/eval.jsonl", "controls/ppo_shuffled/model/x"),
)
MINE = ("rm/notes.txt", "controls/notes.txt", "controls/mine/summary.json", "world/notes.txt")


def laid_out(folder):
    """A recipe with a world, and the files of a finished chain with controls, some of the user's among them."""
    write_data(folder)
    for name in (*MADE, *WORLD, *LABELLED, *CONTROLS, *MINE, "summary.json"):
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return small_recipe(folder, tinyworld=SIZES | {"prompts": 3, "eval_prompts": 2})


def left(folder):
    return {path.relative_to(folder / "run").as_posix() for path in (folder / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("stage", "stands", "said"),
    [
        ("base", {*WORLD}, ["sft", "pmp", "rm", "the controls", "the comparisons of sampled replies"]),
        ("sft", {*WORLD, MADE[0]}, ["pmp", "rm", "the controls", "the comparisons of sampled replies"]),
        ("pmp", {*WORLD, *LABELLED, *MADE[:2]}, ["rm", "the controls"]),
        ("rm", {*WORLD, *LABELLED, *MADE[:3]}, ["the controls"]),
    ],
)
def test_what_was_made_from_a_stage_goes_with_it(tmp_path, stage, stands, said):
    assert clear_stages(laid_out(tmp_path), (stage,)) == said
    assert left(tmp_path) == {*stands, *MINE}
    assert clear_stages(small_recipe(tmp_path), (stage,)) == []


def test_a_whole_chain_leaves_only_what_is_the_users(tmp_path):
    clear_chain(laid_out(tmp_path))
    assert left(tmp_path) == set(MINE)


def test_without_a_world_the_reward_stages_do_not_build_on_sft(tmp_path):
    recipe = small_recipe(tmp_path)
    assert descendants(recipe, ("sft",)) == ("sft",)
    assert descendants(recipe, ("pmp",)) == ("pmp", "rm")
    assert descendants(recipe, ("base",)) == ("base", "sft", "pmp", "rm")
    assert descendants(small_recipe(tmp_path, rm__init_from="base"), ("pmp",)) == ("pmp",)


def test_the_user_is_told_once(tmp_path, capsys):
    write_data(tmp_path)
    recipe = small_recipe(tmp_path, base__max_steps=1)
    (tmp_path / "run" / "rm").mkdir(parents=True)
    (tmp_path / "run" / "rm" / "summary.json").write_text("{}")
    run_stage(recipe, "base", fresh=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "anew" in line]
    assert lines == ["base: starts anew; removed what was made from it: rm"]
    assert not (tmp_path / "run" / "rm").exists()


def test_the_labelled_sets_are_those_that_the_world_labels():
    assert set(LABELLED_SETS) == set(world.LABELLED)
