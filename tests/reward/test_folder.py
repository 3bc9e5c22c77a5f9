import errno
import json
import os

import pytest
from transformers import Qwen2ForCausalLM

from align.runtime.errors import MissingFileError, StorageError
from reward.errors import ModelFileError
from reward.folder import check_model_folder, check_safetensors, local_folder, staged
from tests.tiny_models import qwen2_config, save_causal_lm


def test_folders_hub_ids_and_what_can_be_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "file.bin").write_text("x")
    assert local_folder("runs/base").is_dir()
    assert local_folder("gpt2") is None
    assert local_folder("Qwen/Qwen2.5-0.5B") is None
    for path in ("runs/other", "./Qwen/x", str(tmp_path / "no"), "a/b/c", "~/no-such-model", "file.bin"):
        with pytest.raises(MissingFileError, match=r"file\.bin" if path == "file.bin" else "does not exist"):
            local_folder(path)


def test_every_cut_of_a_safetensors_file_is_noticed(tmp_path):
    file = save_causal_lm(tmp_path / "m") / "model.safetensors"
    check_safetensors(file)
    whole = file.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"model\.safetensors is cut short"):
            check_safetensors(file)
    file.write_bytes(whole + b"x")
    with pytest.raises(ModelFileError):
        check_safetensors(file)


def test_shards_are_checked_one_by_one(tmp_path):
    Qwen2ForCausalLM(qwen2_config()).save_pretrained(tmp_path, max_shard_size="20KB")
    check_model_folder(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(ModelFileError, match=shards[1].name):
        check_model_folder(tmp_path)


def test_pickled_weights_are_refused_by_name(tmp_path):
    save_causal_lm(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin, a pickle"):
        check_model_folder(tmp_path)


def test_json_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ModelFileError, match=r"config\.json holds a JSON list"):
        check_model_folder(tmp_path)


def test_a_full_disk_changes_nothing_and_leaves_nothing(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "tokenizer.json").write_text("kept")
    with pytest.raises(StorageError, match="No space left"), staged(target) as folder:
        (folder / "config.json").write_text("new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (target / "config.json").read_text() == "old"
    with staged(target) as folder:
        (folder / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    assert (target / "tokenizer.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_one_file_replaces_shards_and_the_other_way_round(tmp_path):
    small, large = Qwen2ForCausalLM(qwen2_config()), {"max_shard_size": "20KB"}
    for options in (large, {}, large):
        with staged(tmp_path / "m") as folder:
            small.save_pretrained(folder, **options)
        assert (tmp_path / "m" / "model.safetensors").exists() == (not options)
        assert (tmp_path / "m" / "model.safetensors.index.json").exists() == bool(options)


def test_a_path_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"), staged(tmp_path / "file" / "model"):
        pass
