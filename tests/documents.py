"""The front pages and the manual, taken apart: their blocks, the commands in them, and what stands in backticks.

`python -m tests.documents` writes the doctor's rules into docs/troubleshooting.md.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.commands import ROOT

DOCS = ROOT / "docs"
FRONT = tuple(ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"))
PAGES = (*FRONT, *sorted(DOCS.glob("*.md")))


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The words of every line of a block that is a command; a backslash at its end goes on in the next."""
    texts = (text.replace("\\\n", " ") for language, text in blocks(page) if not language)
    lines = (line for text in texts for line in text.splitlines())
    starts = ("make ", "align ", "accelerate ", "torchrun ", "python ", "OMP_NUM_THREADS", "ALIGN_")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


def spans(page: Path) -> list[str]:
    """What stands in backticks, blocks left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


def troubleshooting() -> str:
    """The page as it should be: what is written by hand, and behind the mark the doctor's rules."""
    import align.doctor.rules  # noqa: F401
    from align.doctor.rule import RULES

    written, mark, _ = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("<!-- doctor -->\n")
    rows = ["| symptom | likely causes | what to change |", "|---|---|---|"]
    for rule in RULES.values():
        title = f"**{rule.title}**" if rule.severity == "problem" else f"*{rule.title}*"
        rows.append(f"| {title} (`{rule.name}`) | {'; '.join(rule.causes)} | {'; '.join(rule.changes)} |")
    return "\n".join([written + mark, *rows, ""])


if __name__ == "__main__":
    (DOCS / "troubleshooting.md").write_text(troubleshooting(), encoding="utf-8")
