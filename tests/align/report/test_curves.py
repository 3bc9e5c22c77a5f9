from align.report.curves import heldout
from align.report.style import LONG, smooth
from align.runs.run_files import StageFiles


def test_held_out_figures_before_during_and_after_training():
    metrics = [{"step": 50, "eval_loss": 1.5}, {"step": 100, "eval_loss": 1.2}, {"step": 100, "train_loss": 3.0}]
    summary = {"heldout_loss_before": 2.0, "heldout_loss": 1.1, "steps": 100}
    assert heldout(StageFiles("sft", summary, metrics), "loss") == ([0.0, 50.0, 100.0], [2.0, 1.5, 1.1])
    assert heldout(StageFiles("sft", {}, metrics), "loss") == ([50.0, 100.0], [1.5, 1.2])
    best = {"heldout_loss_before": 2.0, "heldout_loss": 1.0, "best_step": 70, "steps": 100}
    more = [*metrics, {"step": 70, "eval_loss": 1.0}]
    assert heldout(StageFiles("sft", best, more), "loss") == ([0.0, 50.0, 70.0, 100.0], [2.0, 1.5, 1.0, 1.2])
    rm = {"accuracy": 0.8, "accuracy_before": None}
    assert heldout(StageFiles("rm", rm, [{"step": 7, "loss": 1.0}]), "accuracy") == ([7.0], [0.8])


def test_only_long_series_are_smoothed():
    assert smooth([1.0, 5.0, 3.0]) == [1.0, 5.0, 3.0]
    values = [float(at % 2) for at in range(4 * LONG)]
    assert all(abs(value - 0.5) < 0.1 for value in smooth(values))
    assert len(smooth(values)) == len(values)
