"""recipes/llama2_rounds.yaml in miniature: SFT, then two rounds of comparisons, reward model and rejection sampling."""

import pytest

from align.feedback.rounds import run_rounds
from align.recipe import load_recipe
from align.recipe.rounds import round_recipe
from tests.recipes.miniature import rejection_arguments
from tests.recipes.test_qwen_rlhf import leaves, lines

JUDGE = "def shorter(prompts, first, second):\n    return [len(b) - len(a) for a, b in zip(first, second)]\n"
SIZES = ("max_steps", "batch_size", "num_rounds", "save_steps", "logging_steps", "warmup_steps", "num_generations")
SIZES += ("max_completion_length", "num_samples", "limit", "path", "data_root", "output_dir", "eval_num_replies")
SIZES += ("num_prompts",)


def in_miniature(folder):
    words = [word for word in rejection_arguments(folder) if not word.startswith(("ppo.", "rejection.num_rounds"))]
    (folder / "judge.py").write_text(JUDGE)
    judge = f"rounds.judge={{kind: comparison, function: {folder}/judge.py:shorter}}"
    sizes = ["rounds.num_rounds=2", "collect.num_prompts=8", "collect.max_completion_length=16"]
    return load_recipe("llama2_rounds", [*words, *sizes, judge])


def test_the_values_that_llama_2_prints():
    recipe = load_recipe("llama2_rounds")
    assert (recipe.rounds.num_rounds, recipe.rounds.by_people, recipe.collect.num_replies) == (4, True, 2)
    assert (recipe.rm.margin, recipe.rm.learning_rate, recipe.rm.init_from) == ("small", 1e-5, "sft")
    rejection = round_recipe(recipe, 3).rejection
    assert rejection.rollout.temperature == 1.2 and rejection.rollout.num_generations == 10
    assert [folder.partition("/round-")[2] for folder in rejection.earlier_from] == ["1/rejection", "2/rejection"]


@pytest.mark.slow  # tests/align/feedback/test_rounds.py has the rounds by themselves
def test_the_rounds_run_in_miniature(tmp_path):
    recipe = in_miniature(tmp_path)
    shipped, now = (leaves(one.model_dump()) for one in (load_recipe("llama2_rounds"), recipe))
    changed = {key.removeprefix(".") for key in now if now[key] != shipped.get(key)}
    assert not [key for key in changed if key.rpartition(".")[2] not in SIZES and not key.startswith("rounds.judge")]
    summary = run_rounds(recipe)
    run = tmp_path / "run"
    assert [row["round"] for row in summary["rounds"]] == [0, 1, 2]
    pairs = [row for number in (1, 2) for row in lines(run / f"round-{number}/feedback/pairs.jsonl")]
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in pairs) and pairs
    for number in (1, 2):
        assert (run / f"round-{number}/rejection/model/model.safetensors").is_file()
