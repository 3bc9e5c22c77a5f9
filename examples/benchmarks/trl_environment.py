"""The environment that TRL's last release with PPO runs in: made once, with pip, beside our own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

RELEASE = "1.12.0"  # the last one with `trl.experimental.ppo`; align itself stands on a later one
ROOT = Path(__file__).resolve().parents[2]


def default_folder() -> Path:
    """In the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "align" / f"trl-{RELEASE}"


def interpreter(folder: Path | None = None) -> str:
    """The environment's Python; made first where it is missing. Exits with a sentence where it cannot be made, and
    where the folder holds something else: nothing is installed into what is not ours."""
    folder = folder or default_folder()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    found = _trl_of(python)
    if found == RELEASE:
        return str(python)
    begun = found is None and (folder / "pyvenv.cfg").is_file()  # making it was interrupted
    if folder.exists() and not begun and (not folder.is_dir() or any(folder.iterdir())):
        holds = f"TRL {found}, not {RELEASE}" if found else "something else than an environment of TRL's"
        raise SystemExit(f"error: {folder} holds {holds}: name another folder with --venv, or none")
    print(f"making TRL {RELEASE}'s environment in {folder}: some minutes, once", file=sys.stderr, flush=True)
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise _without(f"{folder} cannot be made an environment with pip ({error})") from error
    _install(python, folder)
    return str(python)


def _trl_of(python: Path) -> str | None:
    """The release of TRL that an interpreter finds, if any."""
    if not python.is_file():
        return None
    asked = "import importlib.metadata as m; print(m.version('trl'))"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _without(problem: str) -> SystemExit:
    return SystemExit(
        f"error: {problem}; name an environment that has TRL {RELEASE} with --venv FOLDER, or leave its side out with "
        "--sides align"
    )


def _install(python: Path, folder: Path) -> None:
    """The very versions that align is tested with (constraints.txt), but for trl."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("\n".join(line for line in pins if not line.startswith("trl==")))
    wanted = [f"trl=={RELEASE}", "transformers>=5.16.1,<5.20", "torch"]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", file.name, *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    Path(file.name).unlink()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise _without(f"pip cannot install TRL {RELEASE} into {folder} ({last})")
