"""Every benchmark, one after the other, and their tables and pictures put into the manual.

    python examples/benchmarks/all.py --out FOLDER [--rounds 5] [--only ppo sft …]
    python examples/benchmarks/all.py --out FOLDER --table docs/benchmarks.md

The second line measures nothing: what FOLDER holds replaces what stands between `<!-- SUBJECT -->` and `<!-- end -->`
in the page, and the pictures go to `assets` beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import measuring
import scaling

SUBJECTS = ("ppo", "decode", "sft", "reward_models", "serve_reward", "data", "cleaning", "scaling")
OF_TRL = ("ppo", "scaling")  # whose other side runs in an environment of its own
PICTURES = {"scaling": "light-only", "scaling-dark": "dark-only"}
PICTURE = '\n<img class="{when}" src="assets/{name}.png" alt="CPU seconds of an iteration over each size, by side">\n'


def fill(page: Path, folder: Path) -> None:
    """Put the tables that `folder` has into the page."""
    text = page.read_text(encoding="utf-8")
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        machine = result["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        units = ", ".join(machine["units"]) or "no vector units that are named here"
        measured = (
            f"{machine['cpu']} ({units}), {machine['cores']} cores, {machine['threads']} threads; {versions}; "
            f"{result['rounds']} rounds."
        )
        table = file.with_suffix(".md").read_text(encoding="utf-8")
        if result["subject"] == "scaling":
            table += "".join(PICTURE.format(name=name, when=when) for name, when in PICTURES.items())
        found = f"<!-- {result['subject']} -->\n{table}\n{measured}\n<!-- end -->"
        text = re.sub(rf"<!-- {result['subject']} -->\n.*?<!-- end -->", lambda _, new=found: new, text, flags=re.S)
    page.write_text(text, encoding="utf-8")
    if (folder / "scaling.json").is_file():
        scaling.main(["--draw", str(folder), str(page.parent / "assets")])


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for every figure and table")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("--rounds", type=measuring.how_many, default=5)
    parser.add_argument("--venv", type=Path, help="environment of TRL's PPO")
    parser.add_argument("--tiny", action="store_true", help="sizes at which it can be tried in some minutes")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="measure nothing; put the tables into this page")
    asked = parser.parse_args(argv)
    if asked.table:
        fill(asked.table, asked.out)
        return
    for subject in asked.only:
        command = [sys.executable, Path(__file__).with_name(f"{subject}.py"), "--out", asked.out]
        command += ["--rounds", str(asked.rounds)] + ["--tiny"] * asked.tiny
        command += ["--venv", asked.venv] if asked.venv and subject in OF_TRL else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
