"""README's picture, `examples/draw_quickstart.py`, is drawn from a run's files alone."""

import importlib.util
from types import ModuleType

import pytest

from tests.align.report.synthetic_run import make_run
from tests.commands import ROOT


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_quickstart", ROOT / "examples/draw_quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_in_both_themes(example, tmp_path):
    example.main(make_run(tmp_path / "run"), tmp_path)
    images = [(tmp_path / name).read_bytes() for name in ("quickstart.png", "quickstart-dark.png")]
    assert all(image.startswith(b"\x89PNG") and len(image) < 200_000 for image in images)
    assert images[0] != images[1]


def test_gold_scores_are_means_over_replies_then_over_prompts(example):
    rows = [
        {"category": "maths", "sampled": {"sft": [{"gold": 0.0}, {"gold": 1.0}], "ppo": [{"gold": 1.5}]}},
        {"category": "writing", "sampled": {"sft": [{"gold": -0.5}], "ppo": [{"gold": 0.5}]}},
    ]
    found = example.gold_by_category(rows)
    assert found == {"all": (0.0, 1.0), "maths": (0.5, 1.5), "writing": (-0.5, 0.5)}
