"""Atomic writing, under ordinary and hostile conditions."""

import os

import pytest
import torch
from safetensors.torch import save_file

from align.runtime import files
from align.runtime.errors import MissingFileError, StorageError
from tests.full_disk import small_files

pytestmark = pytest.mark.usefixtures("synced")


def test_text_and_json_replace_and_make_folders(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"b": [1, 2.5, None], "a": "模型"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": [\n    1,\n    2.5,\n    null\n  ],\n  "a": "模型"\n}\n'
    files.write_text(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["a.json"]


def test_json_refuses_what_json_has_no_word_for(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "model"
    with files.atomic_dir(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with files.atomic_dir(target) as folder:
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text("2")
        assert os.listdir(target) == ["a"]
    assert os.listdir(target) == ["b"] and (target / "b" / "c").read_text() == "2"
    assert os.listdir(tmp_path) == ["model"]


def test_replacing_works_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())  # a C library without renameat2
    for text in ("1", "2"):
        with files.atomic_dir(tmp_path / "model") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "model" / "a").read_text() == "2"
    assert os.listdir(tmp_path) == ["model"]
    os.rename(tmp_path / "model", tmp_path / ".model.old-1234")  # as a kill between the two renames leaves it
    files.heal(tmp_path / "model")
    assert (tmp_path / "model" / "a").read_text() == "2"


def test_an_error_inside_leaves_the_old_folder_and_passes_unchanged(tmp_path):
    target = tmp_path / "model"
    with files.atomic_dir(target) as folder:
        (folder / "a").write_text("old")
    for error in (RuntimeError("a bug"), MissingFileError("no such model"), KeyboardInterrupt()):
        with pytest.raises(type(error)), files.atomic_dir(target) as folder:
            (folder / "a").write_text("half")
            raise error
    assert (target / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".model.tmp-1-aa").mkdir()
    (tmp_path / ".model.tmp-1-aa" / "f").write_text("x")
    (tmp_path / ".a.txt.tmp-1-bb").write_text("x")
    (tmp_path / ".other.tmp-1-cc").write_text("x")
    with files.atomic_dir(tmp_path / "model"):
        pass
    files.write_text(tmp_path / "a.txt", "")
    assert sorted(os.listdir(tmp_path)) == [".other.tmp-1-cc", "a.txt", "model"]


def plain(folder):
    (folder / "f").write_bytes(b"x" * 100_000)


def safetensors(folder):
    save_file({"a": torch.zeros(100_000)}, folder / "f")


def pickle(folder):
    torch.save({"a": torch.zeros(100_000)}, folder / "f")


@pytest.mark.parametrize("write", [plain, safetensors, pickle])
def test_a_full_disk_is_one_clear_error_and_the_old_is_intact(tmp_path, write):
    files.write_text(tmp_path / "a.txt", "old")
    with files.atomic_dir(tmp_path / "folder") as folder:
        (folder / "f").write_text("old")
    told = rf"^cannot write {tmp_path}/folder: .*what was there before is intact"
    with small_files(5000), pytest.raises(StorageError, match=told), files.atomic_dir(tmp_path / "folder") as folder:
        write(folder)
    with small_files(5000), pytest.raises(StorageError, match=rf"cannot write {tmp_path}/a\.txt: File too large"):
        files.write_text(tmp_path / "a.txt", "x" * 100_000)
    assert (tmp_path / "folder" / "f").read_text() == "old" and (tmp_path / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "folder"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*/file/a\.txt: "):
        files.write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize("missing", [1, 30, 200, 3000])
def test_a_disk_that_is_full_anywhere_in_a_torch_file_is_a_storage_error(tmp_path, missing):
    """torch has another error for the last bytes than for those before."""
    state = {"weights": torch.zeros(2000)}
    torch.save(state, tmp_path / "whole.pt")
    with (
        small_files((tmp_path / "whole.pt").stat().st_size - missing),
        pytest.raises(StorageError, match=r"cannot write .*again\.pt: .*is the disk full"),
        files.storage_errors(tmp_path / "again.pt"),
    ):
        torch.save(state, tmp_path / "again.pt")  # the name is in the file: it must be as long as the first one


def test_rows_are_added_behind_what_a_kill_left(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    files.append_json_lines(path, [{"a": 1}])
    files.append_json_lines(path, [{"a": "猫"}, {"a": "\ud800"}])
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"a": "猫"}\n{"a": "\\ud800"}\n'
    path.write_text('{"a": 1}\n{"a"')
    files.append_json_lines(path, [{"a": 2}])
    assert path.read_text() == '{"a": 1}\n{"a"\n{"a": 2}\n'
