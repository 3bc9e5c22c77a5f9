"""The keys of ppo that say what is evaluated: held-out prompts, the best policy, prompts that are too long."""

import pytest

from align.recipe import RecipeError, load_recipe
from align.recipe.ppo_section import PPOEvaluationSection
from align.recipe.rollout_section import RolloutSection

RECIPE = """\
name: t
output_dir: out
model: {path: org/model}
ppo: {data: [a.jsonl], num_iterations: 100, reward: {kind: format}}
"""
EVALUATIONS = ("ppo.eval_data=[a.jsonl]", "ppo.evaluation.every_steps=5", "ppo.evaluation.save_best=true")


def load(tmp_path, *overrides):
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "r.yaml", overrides, world_size=1).ppo


def test_defaults(tmp_path):
    ppo = load(tmp_path)
    assert (ppo.evaluation, ppo.rollout.on_overlong_prompt) == (PPOEvaluationSection(), "drop")
    assert not ppo.evaluation.save_best and RolloutSection().on_overlong_prompt == "drop"
    assert load(tmp_path, *EVALUATIONS).evaluation.save_best
    assert load(tmp_path, "ppo.rollout.on_overlong_prompt=truncate").rollout.on_overlong_prompt == "truncate"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            EVALUATIONS[::2],
            "ppo.evaluation.save_best: there is no choice without evaluations in between: set every_steps too",
        ),
        (EVALUATIONS[1:], "ppo.evaluation.save_best: needs held-out prompts to choose by: name some in eval_data"),
        (
            ("ppo.rollout.on_overlong_prompt=cut",),
            "ppo.rollout.on_overlong_prompt: must be 'drop' or 'truncate', not 'cut' (text)",
        ),
    ],
)
def test_what_is_refused(tmp_path, overrides, problem):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, *overrides)
    assert list(caught.value.problems) == [problem]
