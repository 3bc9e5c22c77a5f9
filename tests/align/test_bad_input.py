"""What a user's mistakes, broken files and a full disk come to: one clear message, exit code 1, nothing lost."""

import json
import shutil

import pytest

from align import ppo, rm, sft
from align.cli import main
from tests.full_disk import small_files
from tests.recipes.miniature import arguments


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    return ["qwen_rlhf", *arguments(tmp_path)]


def error_of(done: int, capsys) -> str:
    """The message, once it is sure that the exit code is 1 and that it is the only one."""
    shown = capsys.readouterr().err
    assert done == 1, shown
    assert "Traceback" not in shown
    (start,) = [at for at, line in enumerate(shown.splitlines()) if line.startswith("error: ")]
    return "\n".join(shown.splitlines()[start:])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "sft.data=[sft/trian.jsonl]",
            "sft.data.0.path: no such file {root}/sft/trian.jsonl; did you mean 'train.jsonl'?",
        ),
        (
            "data_root=/no/where",
            "data_root: no such folder /no/where; set data_root=<folder> to say where the files lie",
        ),
        ("ppo.kl_coeff=0.1", "ppo.kl_coeff: unknown key; did you mean 'kl_coef'?"),
        ("sft.batch_size=many", "sft.batch_size: "),
        ("seed=1.5", "seed: "),
        ("sft.batch_size=5", "sft.batch_size: 5 rows cannot be cut into 1 rank x micro_batch_size 2"),
        (
            "ppo.num_mini_batches=3",
            "ppo.num_mini_batches: 4 prompts x 2 generations = 8 responses cannot be cut into 3",
        ),
        ("model.path=/no/model", "model.path: no such folder /no/model"),
        ("rm.init_from=ppo", "rm.init_from: 'ppo' does not run before 'rm'"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_recipe(command, word, message, words, tmp_path, capsys):
    shown = error_of(main([command, *words, word]), capsys)
    assert message.format(root=tmp_path / "data") in shown and len(shown.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_all_mistakes_of_a_kind_are_told_at_once(words, capsys):
    """First those of single fields, and once these are right those between fields."""
    wrong = {
        "sft.batch_size": ("ppo.kl_coeff=0.1", "sft.batch_size=many", "rm.batch_size=7"),
        "rm.batch_size": ("ppo.kl_coef=0", "ppo.kl_target=1", "rm.batch_size=7"),
    }
    keys = {}
    for first, overrides in wrong.items():
        shown = error_of(main(["check", *words, *overrides]), capsys).splitlines()
        assert shown[0] == "error: qwen_rlhf has 2 errors:"
        keys[first] = {line.split(":")[0].strip() for line in shown[1:]}
    assert keys == {
        "sft.batch_size": {"sft.batch_size", "ppo.kl_coeff"},
        "rm.batch_size": {"ppo.kl_coef", "rm.batch_size"},
    }


def test_an_empty_file(words, tmp_path, capsys):
    (tmp_path / "data/sft/train.jsonl").write_text("")
    shown = error_of(sft.main(words), capsys)
    assert str(tmp_path / "data/sft/train.jsonl") in shown and "no" in shown
    assert not (tmp_path / "run/sft/summary.json").exists()


def test_rows_that_are_all_too_long(words, tmp_path, capsys):
    shown = error_of(sft.main([*words, "sft.max_length=8", "sft.on_overlong=drop"]), capsys)
    assert shown == (
        "error: stage 'sft' has no training rows (40 longer than max_length): check sft.data and sft.max_length"
    )


@pytest.mark.parametrize(
    ("file", "entry", "row", "parts"),
    [
        (
            "sft/train.jsonl",
            sft,
            '{"messages": [{"role": "user"}]}',
            ["line 41", "field 'messages[0]'", "found the keys role"],
        ),
        ("sft/train.jsonl", sft, '{"messages": "hello"}', ["line 41", "field 'messages'", "'hello'"]),
        ("sft/train.jsonl", sft, '{"messages": [', ["line 41", "JSON"]),
        (
            "pmp/comparisons.jsonl",
            rm,
            '{"question": "a?", "response_j": 3, "response_k": "n"}',
            ["line 25", "response_j", "3"],
        ),
    ],
)
def test_a_malformed_row(file, entry, row, parts, words, tmp_path, capsys):
    with (tmp_path / "data" / file).open("a", encoding="utf-8") as stream:
        stream.write(row + "\n")
    options = ["--stage", "pmp"] if entry is rm else []
    shown = error_of(entry.main([*words, *options]), capsys)
    assert f"{tmp_path / 'data' / file}, line" in shown
    for part in parts:
        assert part in shown


def test_a_torn_model_is_named(words, tmp_path, capsys):
    assert sft.main(words) == 0
    whole = tmp_path / "run/sft/model/model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1000])
    capsys.readouterr()
    shown = error_of(ppo.main([*words, "ppo.reward_from=" + str(tmp_path / "run/sft/model")]), capsys)
    assert str(tmp_path / "run/sft/model") in shown
    assert not (tmp_path / "run/ppo").exists()


def test_a_checkpoint_cut_short_is_passed_over(words, tmp_path, capsys):
    out = tmp_path / "run/sft"
    assert sft.main(words) == 0
    weights = (out / "model/model.safetensors").read_bytes()
    (out / "summary.json").unlink()  # as if it was killed at the end
    shutil.rmtree(out / "model")
    torn = out / "checkpoints/step-3/model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1000])
    capsys.readouterr()
    assert sft.main(words) == 0
    shown = capsys.readouterr().err
    assert f"warning: passing over a damaged checkpoint: {torn}: not whole (" in shown
    assert json.loads((out / "summary.json").read_text())["resumed_from"] == 2
    assert (out / "model/model.safetensors").read_bytes() == weights


def test_a_full_disk(words, tmp_path, capsys):
    """A limit on the size of files stands for the full disk: the optimizer's state no longer fits."""
    words = [*words, "pmp=null", "rm=null", "ppo=null"]
    out = tmp_path / "run/sft"
    with small_files(50_000):
        done = main(["run", *words])
    shown = error_of(done, capsys)
    assert shown.startswith(f"error: cannot write {out}/checkpoints/step-2: ")
    assert shown.endswith("(what was there before is intact)")
    assert {path.name for path in out.iterdir()} <= {"recipe.yaml", "metrics.jsonl", "checkpoints"}
    assert not list((out / "checkpoints").iterdir())
    assert sft.main(words) == 0
    assert json.loads((out / "summary.json").read_text())["steps"] == 3


def test_a_file_in_the_place_of_the_output_folder(words, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert f"output_dir: {tmp_path}/run is a file, not a folder" in error_of(main(["run", *words]), capsys)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_written(words, tmp_path, capsys):
    (tmp_path / "run").symlink_to("/proc/nowhere")
    shown = error_of(sft.main(words), capsys)
    assert shown.startswith(f"error: cannot write {tmp_path}/run/")
