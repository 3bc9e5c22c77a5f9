import subprocess
import sys

import torch
from transformers import AutoModelForSequenceClassification

from align import cli
from reward.model import RewardModel
from tests.tiny_models import byte_tokenizer, save_causal_lm


def save_reward(folder):
    RewardModel.from_backbone(save_causal_lm(folder / "base")).save_pretrained(folder / "rm")
    byte_tokenizer().save_pretrained(folder / "rm")
    return folder / "rm"


def test_the_command_writes_a_classifier(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export-reward", str(save_reward(tmp_path)), str(out), "--dtype", "bfloat16"]) == 0
    assert str(out / "README.md") in capsys.readouterr().out
    assert AutoModelForSequenceClassification.from_pretrained(out).dtype == torch.bfloat16


def test_what_cannot_be_exported_is_one_sentence(tmp_path, capsys):
    folder = save_causal_lm(tmp_path / "lm")
    capsys.readouterr()  # what saving prints
    assert cli.main(["export-reward", str(folder), str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "no reward_config.json" in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_it_takes_no_overrides_and_its_help_needs_no_torch():
    code = "import sys; from align.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"

    def align(*words):
        return subprocess.run([sys.executable, "-c", code, "export-reward", *words], capture_output=True, text=True)

    assert "OUT_DIR" in align("--help").stdout
    done = align("a", "b", "c=1")
    assert done.returncode == 2 and "unrecognized arguments: c=1" in done.stderr
