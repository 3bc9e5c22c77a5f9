"""The SFT recipes in miniature: each runs whole, with every value but its sizes as shipped."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.recipe import load_recipe
from align.stages.chain import run_chain
from tests.commands import align
from tests.recipes.miniature import SFT_SIZES, sft_arguments

LATER = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen_sft", "qwen_sft_math")]
RECIPES = ("qwen_sft_multiturn", *LATER)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=RECIPES)
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    recipe = load_recipe(request.param, sft_arguments(folder))
    return request.param, recipe, folder, run_chain(recipe)


def test_only_sizes_differ_from_the_recipe(finished):
    name, recipe, _, _ = finished
    shipped, now = (one.sft.model_dump() for one in (load_recipe(name), recipe))
    assert {key for key in now if now[key] != shipped[key]} <= {size.partition("=")[0] for size in SFT_SIZES}


def test_the_stage_leaves_a_model_that_has_learnt(finished):
    _, recipe, folder, summary = finished
    out = folder / "run/sft"
    start, model = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "Qwen2-tiny", out / "model"))
    pairs = zip(start.state_dict().values(), model.state_dict().values(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    sft = summary["sft"]
    assert sft["steps"] == 4 and sft["rows"] == 36 and sft["heldout_rows"] == 12
    assert sft["replies"] == 4 and 0 <= sft["end_rate"] <= 1
    assert set(sft["by_category"]) == {"meows", "barks", "clucks", "moos"}
    assert [line["step"] for line in lines(out / "metrics.jsonl") if "eval_loss" in line] == [2, 4]
    assert {row["step"] for row in lines(out / "samples.jsonl")} == {2, 4}
    assert ("best_step" in sft) == recipe.sft.keep_best
    assert ("packing" in sft) == recipe.sft.packing
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "qwen_sft",
            "sft: 4000 steps on rows of at most 2048 tokens (longer ones: drop); loss on assistant_only",
        ),
        ("qwen_sft_math", "sft: 50000 steps on length-grouped rows of at most 1024 tokens"),
        ("qwen_sft_multiturn", "(longer ones: truncate); loss on assistant_only, session_mean"),
    ],
)
def test_check_shows_the_plan(name, line, tmp_path):
    words = [word for word in sft_arguments(tmp_path) if not word.startswith("sft.")]
    done = align("check", name, *words)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
