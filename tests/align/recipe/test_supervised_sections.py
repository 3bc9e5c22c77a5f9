"""The fields of the sft section: closed, typed, and free of contradictions."""

import pytest

from align.recipe import RecipeError, dump_recipe, load_recipe
from align.recipe.check import describe_plan

RECIPE = """\
name: t
output_dir: out
model: {path: org/model}
sft: {data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4, max_steps: 9}
"""


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return lambda *overrides: load_recipe(file, overrides, world_size=1)


def problems(load, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(*overrides)
    return list(caught.value.problems)


def test_defaults_train_as_ever(load):
    sft = load().sft
    assert (sft.mask, sft.loss_reduction, sft.default_system, sft.thinking) == (
        "assistant_only",
        "token_mean",
        "none",
        "keep",
    )
    assert not (sft.packing or sft.group_by_length or sft.keep_best or sft.ghost_attention)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sft.mask=assistant", "sft.mask: must be 'assistant_only', "),
        ("sft.loss_reduction=token", "sft.loss_reduction: must be 'token_mean', "),
        ("sft.default_system=always", "sft.default_system: must be 'none' or 'template', not 'always' (text)"),
        ("sft.thinking=true", "sft.thinking: must be 'keep', 'drop' or 'template', not true"),
        ("sft.packing=1", "sft.packing: must be true or false, not 1"),
        ("sft.ghost_attention={instructions: []}", "sft.ghost_attention.instructions: must not be empty"),
        ("sft.ghost_attention={share: 0.5}", "sft.ghost_attention.instructions: is required but missing"),
        ("sft.ghost_attention={instructions: [x], share: 0}", "sft.ghost_attention.share: must be above 0.0, not 0"),
        ("sft.ghost_attention={instructions: [x], top_p: 0}", "sft.ghost_attention.top_p: must be above 0.0, not 0"),
        ("sft.ghost_attention={instructions: ['']}", "sft.ghost_attention.instructions.0.text: must not be empty"),
        ("sft.ghost_attention={instructions: [{texts: x}]}", "sft.ghost_attention.instructions.0.texts: unknown key"),
    ],
)
def test_values_that_do_not_exist(load, override, sentence):
    assert problems(load, override)[0].startswith(sentence)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["packing=true", "group_by_length=true"], "group_by_length", "use it or packing, not both"),
        (["ghost_attention={instructions: [x]}", "mask=all"], "ghost_attention", "mask all puts loss on what the user"),
        (
            ["ghost_attention={instructions: [x]}", "mask=user_content_only"],
            "ghost_attention",
            "use mask assistant_only",
        ),
        (["keep_best=true"], "keep_best", "needs eval_steps"),
        (["keep_best=true", "eval_steps=2", "holdout=0"], "keep_best", "needs held-out rows"),
    ],
)
def test_contradictions_are_refused(load, overrides, key, words):
    (found,) = problems(load, *(f"sft.{word}" for word in overrides))
    assert found.startswith(f"sft.{key}: ") and words in found


def test_what_goes_together_is_taken(load, tmp_path):
    options = "{instructions: [Be brief., {text: Answer in French from now on., short: In French.}], share: 0.5}"
    for mask in ("assistant_only", "last_turn_only"):
        recipe = load(f"sft.ghost_attention={options}", f"sft.mask={mask}", "sft.packing=true")
        brief, french = recipe.sft.ghost_attention.instructions
        assert (brief.text, brief.short, french.short) == ("Be brief.", None, "In French.")
        (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(tmp_path / "again.yaml") == recipe
    assert load("sft.keep_best=true", "sft.eval_steps=2", "sft.holdout=0", "sft.eval_data=[b.jsonl]").sft.keep_best


def test_the_plan_says_how_sft_trains(load):
    line = describe_plan(load(), 1).splitlines()[-1]
    assert line == ("sft: 9 steps on rows of at most 8 tokens (longer ones: drop); loss on assistant_only, token_mean")
    words = ("packing=true", "max_steps=null", "num_train_epochs=2", "mask=last_turn_only", "loss_reduction=turn_mean")
    more = ("keep_best=true", "eval_steps=5", "eval_num_replies=3", "ghost_attention={instructions: [x]}")
    assert describe_plan(load(*(f"sft.{word}" for word in words + more)), 1).splitlines()[-1] == (
        "sft: 2 epochs on packed rows of at most 8 tokens (longer ones: drop); loss on last_turn_only, turn_mean; "
        "ghost attention on a share of 0.2 of the multi-turn conversations; "
        "held-out loss and 3 replies every 5 steps; the best model by held-out loss is kept"
    )
