"""Names of trackers, told without importing anything; compared with what transformers and accelerate know."""

import importlib.util

import pytest

from align.recipe import Recipe
from align.recipe.trackers import SENDING, TRACKERS, tracker_problems
from align.runtime import packages


def recipe(*names):
    return Recipe.model_validate({"name": "t", "output_dir": "o", "model": {"path": "m"}, "report_to": names})


def test_the_names_are_those_of_transformers_and_accelerate():
    from accelerate.utils import LoggerType
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)
    assert set(SENDING) == {str(kind.value) for kind in LoggerType} & set(TRACKERS)


@pytest.fixture
def installed(monkeypatch):
    """Only these packages are found."""
    found = {"wandb", "mlflow", "tensorboardX"}
    monkeypatch.setattr(packages, "find_spec", lambda name: object() if name in found else None)
    return found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trackio", "'trackio' needs trackio, which is not installed: pip install trackio"),
        ("dagshub", "'dagshub' needs dagshub, which is not installed: pip install dagshub"),
        ("azure_ml", "'azure_ml' needs azureml-core, which is not installed: pip install azureml-core"),
        ("flyte", "'flyte' needs flytekit, which is not installed: pip install flytekit"),
    ],
)
def test_a_package_that_is_missing(installed, name, words):
    assert list(tracker_problems(recipe("wandb", name))) == [f"report_to.1: {words}"]


def test_one_of_two_packages_is_enough_and_of_others_all_are_needed(installed):
    assert list(tracker_problems(recipe("wandb", "mlflow", "tensorboard"))) == []
    installed.add("dagshub")
    assert list(tracker_problems(recipe("dagshub"))) == []
    installed.remove("mlflow")
    (problem,) = tracker_problems(recipe("dagshub"))
    assert "needs mlflow" in problem


def test_packages_are_looked_for_in_earnest():
    assert packages.find_spec is importlib.util.find_spec
    (problem,) = tracker_problems(recipe("nothing"))
    assert problem.startswith("report_to.0: there is no tracker 'nothing'; known are azure_ml, ")
