"""A user's own reward.py, rollouts.py or data_formats.py where Python looks first: one sentence that names it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
SCRIPT = "from align import Prompt\nprint(Prompt.__module__)\n"


def started(folder, *words):
    done = subprocess.run([sys.executable, *words], cwd=folder, env=ENV, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def sentence(found, name, cure):
    return f"{found} stands before align's own package '{name}' ({ROOT / name}) on Python's path: {cure}"


@pytest.mark.parametrize("name", ["reward", "rollouts", "data_formats"])
@pytest.mark.parametrize("entry", ["align.ppo", "align.cli"])
def test_our_commands_say_which_file_to_rename(tmp_path, name, entry):
    (tmp_path / f"{name}.py").write_text("def score(prompts, completions): ...\n")
    told = sentence(tmp_path / f"{name}.py", name, "rename the file")
    assert started(tmp_path, "-m", entry, "quickstart") == (1, "", f"error: {told}\n")


def test_a_script_beside_such_a_file_gets_an_import_error(tmp_path):
    (tmp_path / "reward.py").write_text("")
    (tmp_path / "train.py").write_text(SCRIPT)
    code, _, told = started(ROOT, str(tmp_path / "train.py"))
    last = told.splitlines()[-1]
    assert code == 1
    assert last.endswith("ShadowedPackageError: " + sentence(tmp_path / "reward.py", "reward", "rename the file"))


def test_one_that_is_imported_already_is_found_too(tmp_path):
    (tmp_path / "reward.py").write_text("")
    catching = "import reward\ntry:\n    import align\nexcept ImportError as error:\n    print(error)\n"
    (tmp_path / "train.py").write_text(catching)
    code, shown, told = started(ROOT, str(tmp_path / "train.py"))
    assert (code, told) == (0, "") and "rename the file" in shown


def test_a_package_of_that_name_shadows_and_a_bare_folder_does_not(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "reward" / "data").mkdir(parents=True)
    assert started(tmp_path, "train.py") == (0, "data_formats.records\n", "")
    (tmp_path / "reward" / "__init__.py").write_text("")
    code, _, told = started(tmp_path, "train.py")
    cure = "rename the folder, or keep one of the two off that path"
    assert code == 1 and told.splitlines()[-1].endswith(sentence(tmp_path / "reward", "reward", cure))


def test_the_four_packages_at_two_places_are_told(tmp_path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "runtime").symlink_to(ROOT / "align" / "runtime")
    shutil.copy(ROOT / "align" / "__init__.py", tmp_path / "align")
    code, _, told = started(tmp_path, "-c", SCRIPT)
    words = f"align is imported from {tmp_path}, but its package 'data_formats' from {ROOT}: keep one of the two off"
    assert code == 1 and words in told.splitlines()[-1]


def test_the_console_script_does_not_look_into_the_working_directory(tmp_path):
    (tmp_path / "reward.py").write_text("")
    script = "import sys; sys.argv = ['bin/align', 'recipes']; sys.path.remove(''); from align.cli import main; main()"
    code, shown, told = started(tmp_path, "-c", script)
    assert (code, told) == (0, "") and "quickstart" in shown
    code, shown, told = started(
        tmp_path, "-c", script.replace(" sys.path.remove('');", "")
    )  # as PYTHONPATH would have it
    assert (code, shown) == (1, "") and told.startswith(f"error: {tmp_path / 'reward.py'} stands before")
