import pytest
import torch

from tests.align.trainers import supervised_ranks
from tests.ranks import FSDP2, on_ranks


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


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_from_a_checkpoint(tmp_path):
    """One process whole; its first step under FSDP2 on two ranks, and their third on one process again.

    The reward model's head is saved in float32, and TRL computes log-probabilities in float32.
    """
    learnt, steps = {}, {"two": "one/{}/checkpoints/step-1", "back": "two/{}/checkpoints/step-3"}
    for name, ranks, engine in (("one", 1, {}), ("two", 2, FSDP2), ("back", 1, {})):
        (tmp_path / name).mkdir()
        start = str(tmp_path / steps[name]) if name in steps else None
        on_ranks(ranks, supervised_ranks.moved, tmp_path / name, ranks, start, environment=engine)
        learnt[name] = torch.load(tmp_path / name / "learnt.pt", weights_only=True)
    for name in ("two", "back"):
        for kind, one in learnt["one"].items():
            for key, weight in one["weights"].items():
                error = 1e-12 if kind == "sft" else 1e-6
                torch.testing.assert_close(learnt[name][kind]["weights"][key], weight, rtol=error, atol=error)
            for figure in ("loss", "eval_loss"):
                assert learnt[name][kind][figure] == pytest.approx(one[figure], rel=1e-6), (name, kind)
