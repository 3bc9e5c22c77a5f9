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
    """The environment's Python; made first where it is missing. Exits with a sentence where it cannot be made."""
    folder = folder or default_folder()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not _has_trl(python):
        print(f"making TRL {RELEASE}'s environment in {folder}: some minutes, once", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        _install(python, folder)
    return str(python)


def _has_trl(python: Path) -> bool:
    if not python.is_file():
        return False
    asked = f"import importlib.metadata as m; raise SystemExit(m.version('trl') != '{RELEASE}')"
    return subprocess.run([python, "-c", asked], capture_output=True).returncode == 0


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
        raise SystemExit(
            f"error: pip cannot install TRL {RELEASE} into {folder} ({last}); name one that has it with --venv FOLDER, "
            "or leave its side out with --sides align floor"
        )
