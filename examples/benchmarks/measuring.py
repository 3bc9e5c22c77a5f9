"""How the benchmarks measure: each side is a process of its own, which does one piece of work when it is its turn.

A script gives `program` its cases and its sides, functions `side(case, turns)`. A side sets itself up, which is not
counted, and then works between `turns.begin()` and `turns.end()`, again and again. In every round each side has one
turn while the others wait; odd rounds go in reverse order, and the first round warms up. Counted are, by the side's own
process: seconds by the clock, seconds that its threads computed (which other work on the machine disturbs less), and
the most memory that it ever held. Figures are medians over the rounds, with quartiles; ratios are of the same round.

This module and the sides of other projects need nothing of align; this process itself imports no torch, because a
child's peak memory begins at that of its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GIB = 2**30
THREADS = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONWARNINGS": "ignore",
}
Case = dict[str, Any]
SideFunction = Callable[[Case, "Turns"], None]


class Turns:
    """A side's turns.

    Args:
        asked: gives a word for every turn, and ends when there are no more.
        tell: takes the figures of a turn.
    """

    def __init__(self, asked: Iterable[str], tell: Callable[[dict[str, Any]], None]):
        self.asked, self.tell = iter(asked), tell

    def begin(self) -> None:
        """Wait for the turn, then start the clocks. Raises SystemExit when there is none left."""
        if next(self.asked, None) is None:
            raise SystemExit
        _finish_device_work()
        self.clock, self.cpu = time.perf_counter(), time.process_time()

    def end(self, items: float = 1, **more: float) -> None:
        """Stop the clocks and report.

        Args:
            items: how many of the case's unit were done.
            more: other figures of the turn, kept as they are.
        """
        _finish_device_work()
        clock, cpu = time.perf_counter() - self.clock, time.process_time() - self.cpu
        self.tell({"clock": clock, "cpu": cpu, "items": items, "peak": peak_bytes(), **more})

    def repeat(self, work: Callable[[], float | None]) -> None:
        """Turns in which `work` is called; it may say how many items it did."""
        while True:
            self.begin()
            items = work()
            self.end(1 if items is None else items)

    def callback(self, ends: str = "on_step_end", every: int = 1, items: Callable[[], float] = lambda: 1) -> Any:
        """A transformers callback for a trainer whose `train()` holds the loop.

        Args:
            ends: the event with which a step ends, `on_log` where logging is to be counted in.
            every: steps of a turn.
            items: done since the turn began.
        """
        from transformers import TrainerCallback

        turns, steps = self, 0

        def began(*_: Any, **__: Any) -> None:
            turns.begin()

        def ended(*_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            nonlocal steps
            steps += 1
            if steps % every == 0:
                phases = {name: value for name, value in (logs or {}).items() if name.startswith("seconds/")}
                turns.end(items(), **phases)
                turns.begin()

        return type("Turn", (TrainerCallback,), {"on_train_begin": staticmethod(began), ends: staticmethod(ended)})()


def _finish_device_work() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """The most memory that this process held: of the device where torch uses one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def turns_here(side: SideFunction, case: Case, rounds: int = 1) -> list[dict[str, Any]]:
    """The figures of a side that runs in this process."""
    found: list[dict[str, Any]] = []
    with suppress(SystemExit):
        side(case, Turns(["go"] * rounds, found.append))
    return found


class Worker:
    """The process of a side."""

    def __init__(self, script: str, side: str, case: Case, python: str):
        command = [python, script, "--work", side, json.dumps(case)]
        environment = {**THREADS, **os.environ, **QUIET}
        self.side, self.said = side, tempfile.TemporaryFile("w+")  # noqa: SIM115 (a full pipe would stop the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=environment
        )

    def turn(self) -> dict[str, Any]:
        """One turn. Exits with what the process said when it fails."""
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.said.seek(0)
            raise SystemExit(f"error: side '{self.side}' failed:\n{self.said.read()[-3000:].strip()}")
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


def work(sides: dict[str, SideFunction], side: str, case: str) -> None:
    """A side in this process, led by its parent over standard input and output; what libraries print is dropped."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def tell(figures: dict[str, Any]) -> None:
        answers.write(json.dumps(figures) + "\n")
        answers.flush()

    sides[side](json.loads(case), Turns(sys.stdin, tell))


def measure(script: str, case: Case, pythons: dict[str, str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The figures of every round, by side; `pythons`: which interpreter each side runs in."""
    workers = []
    try:
        for side, python in pythons.items():
            workers.append(Worker(script, side, case, python))
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in pythons}
        for at in range(rounds + 1):
            for worker in workers if at % 2 else reversed(workers):
                figures = worker.turn()
                if at:  # the first round warms up
                    found[worker.side].append(figures)
        return found
    finally:
        for worker in workers:
            worker.close()


def how_many(told: str) -> int:
    """A count of rounds, from the command line."""
    if not told.isdecimal() or int(told) < 1:
        raise argparse.ArgumentTypeError(f"'{told}' is no whole number from 1 on")
    return int(told)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl")
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return {
        "cpu": cpu.partition(":")[2].strip() or cpu,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", THREADS["OMP_NUM_THREADS"]),
        "units": units,
        "versions": {name: version(name) for name in names},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if os.path.exists(path) else []


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    values = list(values)
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def ratio(of: list[dict], over: list[dict], clock: str) -> tuple[float, float, float]:
    """How many times as fast `over` is as `of`, by that clock: quartiles over the rounds."""
    return spread(
        (one[clock] / one["items"]) / (other[clock] / other["items"]) for one, other in zip(of, over, strict=True)
    )


def table(result: dict[str, Any]) -> str:
    """A subject's results as a Markdown table: medians, quartiles in brackets, and how many times as fast the first
    side is."""
    unit = result["unit"]
    names = list(dict.fromkeys(side for case in result["cases"] for side in case["sides"]))
    first, *others = names
    seconds = unit == "iteration"
    what = "seconds" if seconds else f"{unit}/s"
    head = ["case", *(f"{name}, {what}: clock; CPU" for name in names)]
    head += [f"{other} / {first}: clock; CPU" for other in others]
    head += [f"peak GiB: {', '.join(names)}"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for case in result["cases"]:
        sides, row = case["sides"], [case["words"]]
        for name in names:
            row.append(
                "; ".join(_cell(sides[name], clock, seconds) for clock in ("clock", "cpu")) if name in sides else ""
            )
        for name in others:
            if name in sides:
                row.append("; ".join(_shown(ratio(sides[name], sides[first], clock)) for clock in ("clock", "cpu")))
            else:
                row.append("")
        row.append(", ".join(f"{max(f['peak'] for f in sides[n]) / GIB:.2f}" for n in names if n in sides))
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(figures: list[dict], clock: str, seconds: bool) -> str:
    return _shown(spread(f[clock] / f["items"] if seconds else f["items"] / f[clock] for f in figures))


def _shown(quartiles: tuple[float, float, float]) -> str:
    low, middle, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in quartiles)
    return middle if low == high else f"{middle} ({low}–{high})"


def program(
    script: str,
    doc: str,
    sides: dict[str, SideFunction],
    cases: dict[str, Case],
    *,
    unit: str,
    tiny: dict[str, Any],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    settle: Callable[[argparse.Namespace, Case], Case] = lambda asked, case: case,
    pythons: Callable[[argparse.Namespace], dict[str, str]] = lambda asked: {},
    argv: list[str] | None = None,
) -> None:
    """The command line of a benchmark.

    Args:
        doc: the script's docstring, for --help.
        cases: by name; each has `words` for the table, and perhaps `sides`, those that it has.
        unit: what an item is; `iteration` is shown in seconds, others by how many are done in one.
        tiny: what --tiny changes in every case.
        options: adds the script's own; `settle` makes the case of them; `pythons` gives interpreters of sides that do
            not run in this one.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--work"]:
        work(sides, argv[1], argv[2])
        return
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases), metavar="CASE", help=", ".join(cases))
    parser.add_argument("--sides", nargs="+", choices=sides, default=list(sides), metavar="SIDE", help=", ".join(sides))
    parser.add_argument("--rounds", type=how_many, default=5, help="rounds that are counted (default 5)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="figures and table, over older ones of the same cases"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes at which it can be tried in a minute")
    options(parser)
    asked = parser.parse_args(argv)
    subject = Path(script).stem
    own = pythons(asked)
    result: dict[str, Any] = {
        "subject": subject,
        "unit": unit,
        "rounds": asked.rounds,
        "machine": machine(),
        "cases": [],
    }
    if asked.out is not None:
        result["cases"] = cases_kept(asked.out, result, asked.cases)
    for name in asked.cases:
        case = settle(asked, {**cases[name], **(tiny if asked.tiny else {})})
        here = {side: own.get(side, sys.executable) for side in asked.sides if side in case.get("sides", sides)}
        print(f"{subject} {name}: {case['words']}", file=sys.stderr, flush=True)
        found = measure(script, case, here, asked.rounds)
        result["cases"].append({"name": name, "words": f"{name}: {case['words']}", "case": case, "sides": found})
        result["cases"].sort(key=lambda measured: list(cases).index(measured["name"]))
        if asked.out is not None:  # what is measured is kept even if a later case fails
            write(result, asked.out)
    print(table(result))


def cases_kept(folder: Path, result: dict[str, Any], again: Sequence[str]) -> list[dict[str, Any]]:
    """The cases in `folder`, but those that are measured `again`; none where subject, rounds or machine were others."""
    file = folder / f"{result['subject']}.json"
    if not file.is_file():
        return []
    earlier = json.loads(file.read_text(encoding="utf-8"))
    if any(earlier[key] != result[key] for key in ("unit", "rounds", "machine")):
        return []
    return [case for case in earlier["cases"] if case["name"] not in again]


def write(result: dict[str, Any], folder: Path, shown: Callable[[dict[str, Any]], str] = table) -> None:
    """`SUBJECT.json` and, as `shown`, `SUBJECT.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['subject']}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / f"{result['subject']}.md").write_text(shown(result) + "\n", encoding="utf-8")
