"""The selection section: rules, what is missing for it, files of its own, and its place in a recipe."""

import json

import pytest

from align.recipe import selection_section
from align.recipe.check import run_problems
from align.recipe.errors import RecipeError
from align.recipe.lineage import inputs
from align.recipe.selection_section import SelectionSection, read_selection, selection_problems
from tests.align.stages.sft_case import recipe


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"keep": 2.5}, "keep: 2.5 is above 1, so a number of rows: make it whole, or a share to 1"),
        ({"top_quality": 0.25}, "top_quality: needs quality"),
        ({"clustering": "leader", "clusters": 3}, "clusters: leaders are as many as the data need"),
    ],
)
def test_what_cannot_be_meant_is_said(keys, said):
    with pytest.raises(ValueError, match=said):
        SelectionSection(**keys)


def test_a_budget_is_a_share_or_a_number():
    assert [SelectionSection(keep=keep).budget(30) for keep in (0.5, 1, 7, 99)] == [15, 30, 7, 30]


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(selection_section, "is_installed", lambda package: False)
    found = selection_problems("sft.selection", SelectionSection(embeddings="./gone"), "Demonstration")
    assert found == [
        "sft.selection needs scikit-learn, which is not installed: pip install 'align-rlhf[curation]'",
        "sft.selection.embeddings: no such folder ./gone",
    ]
    by_leaders = SelectionSection(embeddings=str(tmp_path), clustering="leader")
    assert selection_problems("s", by_leaders, "Demonstration") == []
    rated = SelectionSection.model_validate({"quality": {"kind": "reward", "model_from": "./rm"}})
    monkeypatch.setattr(selection_section, "is_installed", lambda package: True)
    assert selection_problems("s", rated, "Prompt") == [
        "s.quality: 'reward' cannot rate a Prompt (it rates Demonstration, Comparison, Scored); name another kind",
        "s.quality.model_from: no such folder ./rm",
    ]


def test_models_of_a_selection_are_inputs_of_the_stage(tmp_path):
    quality = {"kind": "reward", "model_from": "rm"}
    made = recipe(tmp_path, selection={"quality": quality, "embeddings": str(tmp_path / "model")})
    found = inputs(made, "sft")
    assert {key: (one.kind, one.value) for key, one in found.items() if key.startswith("selection")} == {
        "selection.embeddings": ("path", str(tmp_path / "model")),
        "selection.quality.model_from": ("stage", "rm"),
    }
    (problem,) = [one for one in run_problems(made, ["sft"]) if "selection" in one]
    assert problem.startswith("sft.selection.quality.model_from: 'rm' does not run before 'sft'")
    gone = recipe(tmp_path, selection={"quality": quality | {"model_from": "./rm"}})
    assert "sft.selection.quality.model_from: no such folder ./rm" in run_problems(gone, ["sft"])


def test_a_file_of_its_own(tmp_path):
    file = tmp_path / "selection.yaml"
    file.write_text("keep: 0.3\ndifficulty: {kind: tags}\n")
    assert read_selection(file) == SelectionSection.model_validate({"keep": 0.3, "difficulty": {"kind": "tags"}})
    file.write_text(json.dumps({"keap": 1, "max_cosine": 3}))
    with pytest.raises(RecipeError, match="keap") as raised:
        read_selection(file)
    assert "max_cosine" in str(raised.value)
