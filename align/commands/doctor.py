"""align doctor RUN: what ails a ppo stage, by the figures it logged.

Reads metrics.jsonl, and recipe.yaml and samples.jsonl where they are there, and asks a list of rules. A problem puts
the result of the run in doubt, a note is worth knowing. A rule whose figures the run did not log is named as one that
could not look. The rules see symptoms; the causes they name are likely ones, not proven.

exit code: 0 whatever was found; with --strict 3 when there is a problem; 1 when there is nothing to read
"""

from __future__ import annotations

import argparse
import json
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

from align.runtime.terminal import say

if TYPE_CHECKING:
    from align.doctor import Diagnosis, History

PROBLEM_FOUND = 3
INDENT = 11


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "name what ails a ppo stage, with evidence, likely causes and what to change"
    parser = commands.add_parser("doctor", help=words, description=__doc__)
    parser.set_defaults(work=doctor_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="RUN", help="a run folder, its ppo folder, or a metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--strict", action="store_true", help=f"exit with {PROBLEM_FOUND} when there is a problem")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def doctor_command(args: argparse.Namespace) -> int:
    """Print the diagnosis; returns the exit code.

    Raises:
        MissingFileError, EmptyDatasetError: no ppo stage that has logged an iteration.
    """
    from align.doctor import examine, read_history

    history = read_history(args.run)
    diagnosis = examine(history)
    if args.json:
        steps = [line["step"] for line in history.iterations]
        head = {"run": args.run, "iterations": len(set(steps)), "first_step": min(steps), "last_step": max(steps)}
        say(json.dumps({**head, **diagnosis.as_json()}, ensure_ascii=False, indent=2))
    else:
        _show(args.run, history, diagnosis)
    return PROBLEM_FOUND if args.strict and diagnosis.problems else 0


def _show(name: str, history: History, diagnosis: Diagnosis) -> None:
    """On standard output, a block a finding."""
    from rich.text import Text

    from align.runtime.console import Console

    console = Console()
    steps = [line["step"] for line in history.iterations]
    counts = [
        f"{number} {word}{'' if number == 1 else 's'}"
        for number, word in (
            (len(diagnosis.problems), "problem"),
            (len(diagnosis.findings) - len(diagnosis.problems), "note"),
        )
    ]
    span = f"{len(set(steps))} iterations logged, steps {min(steps)} to {max(steps)}"
    console.print(Text(f"{name}: {span}; {counts[0]}, {counts[1]}", style="bold"), soft_wrap=True)
    for finding in diagnosis.findings:
        rule = finding.rule
        style = "bold red" if rule.severity == "problem" else "bold yellow"
        console.print()
        console.print(Text.assemble((rule.severity, style), f"  {rule.title} ", (f"({rule.name})", "dim")))
        lines = [("seen", finding.evidence.words), *(("likely", cause) for cause in rule.causes)]
        for word, text in [*lines, *(("change", change) for change in rule.changes)]:
            first, *others = wrap(text, max(20, console.width - INDENT))
            console.print(Text.assemble((f"{word:>{INDENT - 1}} ", "dim"), first), soft_wrap=True)
            for other in others:
                console.print(Text(" " * INDENT + other), soft_wrap=True)
    console.print()
    clear = f"{len(diagnosis.clear)} rules saw nothing: {', '.join(diagnosis.clear)}"
    console.print(Text(fill(clear, console.width, break_on_hyphens=False)), soft_wrap=True)
    if diagnosis.blind:
        blind = "; ".join(f"{rule} ({why})" for rule, why in diagnosis.blind.items())
        text = fill(f"{len(diagnosis.blind)} could not look: {blind}", console.width, break_on_hyphens=False)
        console.print(Text(text), soft_wrap=True)
