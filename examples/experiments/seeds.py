"""Finished quickstarts of several seeds, side by side, as Markdown tables.

    python examples/experiments/seeds.py runs/quickstart-seed1 runs/quickstart-seed2 runs/quickstart

Reads `<run>/summary.json` and, where it is there, `<run>/controls/summary.json`; computes nothing of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.runs.launch import guarded
from align.runtime.errors import MissingFileError
from align.runtime.json_files import read_object
from align.runtime.terminal import Parser, say
from data_formats.errors import DataError

Row = tuple[str, Callable[[dict[str, Any]], str]]


def percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def interval(gain: dict[str, float], scale: float = 1.0) -> str:
    """A difference with its 95 % interval."""
    return f"{scale * gain['difference']:+.2f} [{scale * gain['low']:+.2f}, {scale * gain['high']:+.2f}]"


def _before_after(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda run: f"{run['sft'][key]:.2f} → {run['ppo'][key]:.2f}"


def _counts(suffix: str) -> Callable[[dict[str, Any]], str]:
    def cell(run: dict[str, Any]) -> str:
        ppo = run["ppo"]
        wins = " / ".join(str(ppo[f"{name}{suffix}"]) for name in ("win", "tie", "loss"))
        return f"{wins} ({percent(ppo[f'decided_won{suffix}'])})"

    return cell


CHAIN: tuple[Row, ...] = (
    (
        "base: held-out loss / unigram entropy",
        lambda r: f"{r['base']['heldout_loss']:.2f} / {r['base']['unigram_entropy']:.2f}",
    ),
    ("sft: replies that end by themselves", lambda r: percent(r["sft"]["end_rate"])),
    ("sft: well-formed replies, temperature 1", lambda r: percent(r["sft"]["well_formed_sampled"])),
    ("pmp alone: accuracy on the held-out pairs", lambda r: percent(r["rm"]["accuracy_before"])),
    ("rm: accuracy", lambda r: percent(r["rm"]["accuracy"])),
    ("rm: on pairs that differ in correctness alone", lambda r: percent(r["rm"]["accuracy_correctness"])),
    ("rm without pmp: accuracy", lambda r: percent(r["rm"]["accuracy_without_pmp"])),
    (
        "by length alone / by manners alone",
        lambda r: f"{percent(r['rm']['length_baseline'])} / {percent(r['rm']['manners_baseline'])}",
    ),
    ("gold, greedy", _before_after("gold")),
    ("  gain", lambda r: interval(r["ppo"]["gold_gain"])),
    ("correct, greedy", _before_after("correct")),
    ("  gain in points", lambda r: interval(r["ppo"]["correct_gain"], 100)),
    ("win / tie / loss, greedy (of decided)", _counts("")),
    ("gold, temperature 1", _before_after("gold_sampled")),
    ("  gain", lambda r: interval(r["ppo"]["gold_gain_sampled"])),
    ("correct, temperature 1", _before_after("correct_sampled")),
    ("  gain in points", lambda r: interval(r["ppo"]["correct_gain_sampled"], 100)),
    ("win / tie / loss, temperature 1 (of decided)", _counts("_sampled")),
    ("KL, nats a reply; entropy, nats a token", lambda r: f"{r['ppo']['kl']:.2f}; {r['ppo']['entropy']:.2f}"),
    ("different texts among the sampled replies", lambda r: percent(r["ppo"]["distinct_sampled"])),
    ("memory at most, GiB", lambda r: f"{r['peak_memory_gib']:.2f}"),
    ("seconds: " + " + ".join(("base", "sft", "pmp", "rm", "ppo")), lambda r: _seconds(r["seconds"])),
)
CONTROLS: tuple[Row, ...] = (
    (
        "rm, best of three rates: with pmp / without",
        lambda c: f"{percent(c['pmp']['best_with_pmp'])} / {percent(c['pmp']['best_without_pmp'])}",
    ),
    ("  paired gain in points", lambda c: interval(c["pmp"]["gain"], 100)),
    (
        "SFT on good demonstrations: gold greedy / temperature 1",
        lambda c: f"{c['good_demonstrations']['gold']:.2f} / {c['good_demonstrations']['gold_sampled']:.2f}",
    ),
    (
        "  correct greedy / temperature 1",
        lambda c: f"{c['good_demonstrations']['correct']:.2f} / {c['good_demonstrations']['correct_sampled']:.2f}",
    ),
    (
        "best of 8 SFT replies: gold / correct",
        lambda c: f"{c['best_of_n']['gold']:.2f} / {c['best_of_n']['correct']:.2f}",
    ),
    ("PPO on shuffled labels: gold gain greedy", lambda c: interval(c["shuffled_labels"]["gold_gain"])),
    ("  gold gain temperature 1", lambda c: interval(c["shuffled_labels"]["gold_gain_sampled"])),
    ("  accuracy of that reward model", lambda c: percent(c["shuffled_labels"]["reward_accuracy"])),
)


def by_category(summaries: Sequence[dict[str, Any]]) -> tuple[Row, ...]:
    """Wins, ties and losses of each category, greedy replies and those at temperature 1."""

    def row(name: str, suffix: str) -> Callable[[dict[str, Any]], str]:
        def cell(run: dict[str, Any]) -> str:
            counts = run["ppo"][f"by_category{suffix}"][name]
            return " / ".join(str(counts[key]) for key in ("win", "tie", "loss"))

        return cell

    names = sorted(summaries[0]["ppo"]["by_category"])
    ways = (("", "greedy"), ("_sampled", "temperature 1"))
    return tuple((f"{name}, {how}", row(name, suffix)) for suffix, how in ways for name in names)


def _seconds(by_stage: dict[str, float]) -> str:
    return " + ".join(f"{seconds:.0f}" for seconds in by_stage.values()) + f" = {sum(by_stage.values()):.0f}"


def table(rows: Sequence[Row], summaries: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with one column a summary."""
    head = ["", *(f"seed {summary['seed']}" for summary in summaries)]
    lines = [head, ["---", *["---:"] * len(summaries)]]
    lines += [[name, *(cell(summary) for summary in summaries)] for name, cell in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of the runs named on the command line; returns the exit code."""
    parser = Parser(prog="python examples/experiments/seeds.py", description="The tables of docs/results.md.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a finished quickstart")
    folders = [Path(name) for name in parser.parse_args(argv).runs]
    with guarded(proceed="python examples/experiments/seeds.py RUN …") as ending:
        show(folders)
    return ending.code


def show(folders: Sequence[Path]) -> None:
    """Print the chain's tables, and the controls' where every run has them."""
    files = [folder / "summary.json" for folder in folders]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingFileError(f"{missing[0]} does not exist: run the quickstart to its end first")
    runs: list[dict[str, Any]] = []
    for file in files:
        runs.append(_read(file, lambda run: (*CHAIN, *by_category([*runs, run]))))
    say(table(CHAIN, runs) + "\n")
    say(table(by_category(runs), runs) + "\n")
    beside = [folder / "controls" / "summary.json" for folder in folders]
    if all(file.is_file() for file in beside):
        say(table(CONTROLS, [_read(file, lambda _: CONTROLS) for file in beside]) + "\n")


def _read(file: Path, rows: Callable[[dict[str, Any]], Sequence[Row]]) -> dict[str, Any]:
    """The summary in `file`, once it is seen to have the figures of all its `rows`.

    Raises:
        RunFileError: it is damaged.
        DataError: it is another recipe's.
    """
    summary = read_object(file, "run the quickstart again to have it written")
    try:
        table(rows(summary), [summary])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "cannot be read as one"
        problem = f"is not the summary of a finished quickstart (it {what}), whose figures these tables show"
        raise DataError(problem, path=str(file)) from error
    return summary


if __name__ == "__main__":
    sys.exit(main())
