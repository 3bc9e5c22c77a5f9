import pytest
import torch

from tests.align.trainers import supervised_ranks
from tests.ranks import on_ranks


def launch(folder, ranks):
    folder.mkdir()
    on_ranks(ranks, supervised_ranks.main, folder, ranks)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.slow
def test_two_ranks_learn_and_measure_what_one_does(tmp_path):
    one, two = launch(tmp_path / "one", 1), launch(tmp_path / "two", 2)
    assert (
        {"sft", "reward", "dpo", "groups True", "groups False", "sft packed", "sft mixed", "sft session_mean"}
        <= one.keys()
        == two.keys()
    )
    for kind in one:
        tolerance = 1e-9 if kind.startswith("sft") else 1e-4
        assert one[kind]["gradients"].keys() == two[kind]["gradients"].keys()
        for name, gradient in one[kind]["gradients"].items():
            torch.testing.assert_close(two[kind]["gradients"][name], gradient, rtol=tolerance, atol=tolerance / 100)
        torch.testing.assert_close(two[kind]["predictions"], one[kind]["predictions"], rtol=1e-5, atol=1e-5)
        for figure in ("loss", "accuracy", "eval_loss", "eval_items"):
            assert two[kind][figure] == pytest.approx(one[kind][figure], rel=1e-5), (kind, figure)
    step = tmp_path / "two" / "sft" / "checkpoints" / "step-1"
    assert {path.name for path in step.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
