"""Pieces of a long command: made once, gone on with by the same command alone, one writer at a time."""

import pytest

from align.runtime import files
from align.runtime.errors import StorageError
from align.runtime.json_files import RunFileError
from align.runtime.lock import FolderInUseError
from align.runtime.pieces import pieces_in

MADE_WITH = {"reward": "a", "data": [["x", 1]], "limit": None}


def made(folder, calls, upto, of=3, **changes):
    with pieces_in(folder, MADE_WITH | changes, command="score") as pieces:
        for number in range(of):
            if number == upto:
                raise KeyboardInterrupt
            pieces.make(number, lambda at=number: calls.append(at) or [{"at": at}, {"at": at + 0.5}])
        return list(pieces.rows(of))


def test_a_piece_is_made_once_and_all_are_those_of_a_run_that_was_never_stopped(tmp_path):
    folder, calls = tmp_path / "out.pieces", []
    with pytest.raises(KeyboardInterrupt):
        made(folder, calls, upto=2)
    for changes, told in (({"limit": 1}, "limit"), ({"reward": "b", "new": 1}, "reward, new")):
        with pytest.raises(StorageError, match=rf"other: {told}\): remove it to begin anew"):
            made(folder, calls, upto=None, **changes)
    assert [row["at"] for row in made(folder, calls, upto=None)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert calls == [0, 1, 2] and not folder.exists()


def test_one_that_made_nothing_leaves_nothing_and_a_second_writer_is_refused(tmp_path):
    folder = tmp_path / "out.pieces"
    with pytest.raises(KeyboardInterrupt):
        made(folder, [], upto=0)
    assert not folder.exists()
    with pieces_in(folder, MADE_WITH, command="score") as pieces:
        with pytest.raises(FolderInUseError, match="another process is running 'score'"):
            made(folder, [], upto=None)
        pieces.make(0, lambda: [{"at": 0}])
        with pytest.raises(RunFileError, match=r"1\.jsonl cannot be read \(no such file\): remove it, and the same"):
            list(pieces.rows(2))
    with pieces_in(folder, MADE_WITH, command="card", keep=True) as pieces:
        pieces.make(0, lambda: [{"at": 0}])
    assert pieces.there == 1


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("notes")
    with pytest.raises(StorageError, match=r"holds mine\.txt, which is no piece of a command: name another place"):
        made(tmp_path, [], upto=None)
    assert (tmp_path / "mine.txt").read_text() == "notes"


def test_what_goes_wrong_in_making_a_piece_is_no_failure_of_the_storage(tmp_path):
    def fail():
        yield {"at": 0}
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"), pieces_in(tmp_path / "p", MADE_WITH, command="score") as pieces:
        pieces.make(0, fail)
    assert not (tmp_path / "p").exists()


def test_a_stamp_tells_files_apart_and_is_empty_for_what_is_none(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    assert files.stamp(file) == files.stamp(tmp_path) and files.stamp(file)[0][:2] == ["a.bin", 3]
    assert files.stamp("org/name") == files.stamp("") == []
