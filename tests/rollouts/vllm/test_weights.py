"""Weights on their way through files: what is written is what is read, and what is cut short is not read at all."""

import os
import stat

import pytest
import torch

import rollouts.vllm.weights as push_module
from rollouts.errors import RolloutError
from rollouts.vllm.weights import private_folder, write_push
from rollouts.vllm.worker import tensors, whole_files


def stream(scale=1.0):
    shared = torch.arange(12, dtype=torch.float32).reshape(3, 4) * scale
    yield "a.weight", shared
    yield "b.weight", shared.T  # not contiguous, of the same memory
    yield "c.weight", shared[1:]
    yield "d.bias", torch.full((5,), 0.1, dtype=torch.bfloat16)


@pytest.mark.parametrize("piece", [1, 100, 2**30])
def test_what_is_pushed_is_what_is_pulled(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(push_module, "PIECE", piece)
    push = write_push(tmp_path, stream(), 3)
    assert len(push.files) == {1: 4, 100: 2, 2**30: 1}[piece]  # 48, 48, 32 and 10 bytes
    found = dict(tensors(whole_files(tmp_path, push.files, push.digest), torch.device("cpu")))
    assert list(found) == [name for name, _ in stream()]
    for name, wanted in stream():
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted)


def test_the_next_push_takes_the_place_of_the_last(tmp_path):
    first = write_push(tmp_path, stream(), 1)
    second = write_push(tmp_path, stream(2.0), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name, _ in second.files]
    with pytest.raises(OSError, match="weights-1"):
        whole_files(tmp_path, first.files, first.digest)


@pytest.mark.parametrize("left", [0, 7, 40, -1])
def test_a_file_cut_short_is_refused(tmp_path, left):
    push = write_push(tmp_path, stream(), 1)
    path = tmp_path / push.files[0][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    with pytest.raises(ValueError, match=rf"has {len(whole[:left])} bytes, {len(whole)} were written: it was cut"):
        whole_files(tmp_path, push.files, push.digest)


def test_a_broken_header_and_other_tensors_are_refused(tmp_path):
    push = write_push(tmp_path, stream(), 1)
    other = write_push(tmp_path / "..", ((name, tensor.double()) for name, tensor in stream()), 1)
    with pytest.raises(ValueError, match="do not hold the tensors that were announced"):
        whole_files(tmp_path, push.files, other.digest)
    path = tmp_path / push.files[0][0]
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(ValueError, match="is broken"):
        whole_files(tmp_path, push.files, push.digest)


def test_the_folder_is_private_and_may_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_VLLM_PUSH_FOLDER", str(tmp_path))
    folder = private_folder(1)
    assert folder.parent == tmp_path and stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    monkeypatch.setenv("ALIGN_VLLM_PUSH_FOLDER", str(tmp_path / "none"))
    with pytest.raises(RolloutError, match=r"ALIGN_VLLM_PUSH_FOLDER names .*none, which is no folder"):
        private_folder(1)


def test_no_room_in_memory_means_disk(tmp_path, monkeypatch):
    monkeypatch.delenv("ALIGN_VLLM_PUSH_FOLDER", raising=False)
    monkeypatch.setattr(push_module.tempfile, "gettempdir", lambda: str(tmp_path))
    assert private_folder(2**60).parent == tmp_path


def test_a_full_disk_is_said_in_words():
    folder = push_module.Path("/proc")  # where nothing can be written there
    with pytest.raises(RolloutError, match=r"cannot be written to /proc.*ALIGN_VLLM_PUSH_FOLDER"):
        write_push(folder, stream(), 1)
