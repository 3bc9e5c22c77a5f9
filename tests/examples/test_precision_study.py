"""The study of precisions on a tiny model: all figures are there, and those that must be 0 are."""

from examples.experiments import precision
from tests.tiny_models import save_causal_lm


def test_every_trainer_beside_every_hf_engine(tmp_path, capsys):
    folder = save_causal_lm(tmp_path / "model")
    options = ["--questions", "2", "--replies", "1", "--tokens", "6", "--out", str(tmp_path / "found.json")]
    found = precision.main([str(folder), "--engines", "hf float32", "hf bf16 autocast", *options])
    assert set(found["engines"]) == {"hf float32", "hf bf16 autocast"} and found["kl"].keys() == set(precision.TRAINERS)
    exact, rounded = found["engines"]["hf float32"], found["engines"]["hf bf16 autocast"]
    assert exact["engine"][2] < 1e-4 < rounded["engine"][2]
    assert exact["trainers"]["float32"] == [0.0, 0.0, 0.0] and exact["trainers"]["bf16 weights"][0] > 1e-4
    assert exact["exact"]["apart"] == rounded["exact"]["apart"] == 0 and exact["exact"]["passes"] >= 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| bf16 autocast | hf ") for line in lines) == 2
    again = precision.main([str(folder), "--engines", "hf bf16 weights", *options])
    assert list(again["engines"]) == ["hf float32", "hf bf16 autocast", "hf bf16 weights"]
