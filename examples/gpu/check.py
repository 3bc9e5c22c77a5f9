"""What only a card can prove, in a quarter of an hour: every path that a GPU takes, part by part.

    python examples/gpu/check.py [--out docs/gpu] [--seconds 840] [--only PART ...]       make gpu-check
    python examples/gpu/check.py --dry [--out FOLDER]                                     make gpu-check DRY=1

Parts run in the order of `PARTS`, what tells most first; each is a process with a limit of its own, and none stops the
next. A part is a file beside this one whose `CASES` say by name what is done; a case gives figures, or raises: `Skip`
where it cannot be here, anything else where it failed. Where a case takes CUDA with it, a fresh process goes on with
those after it. `results.json` and `results.md` are written after every case, so a run that is cut still tells what it
saw. `--dry` does it with tiny shapes on a CPU, of stages that are alike one, and says what only a card can do. Needs
what align needs; vLLM, bitsandbytes and flash-attn where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = {  # seconds
    "environment": 45,
    "smoke": 200,
    "sharing": 75,
    "engines": 150,
    "memory": 150,
    "speed": 180,
}
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
}
PATIENCE = 4  # a dry run shares its machine with other work
GRACE = 5  # seconds to write what was seen, before a part's limit


class Skip(Exception):
    """This cannot be done here; says why."""


@dataclass(frozen=True)
class Here:
    """What a case is told, beside the empty folder that it works in: whether it is to be tiny, on a CPU."""

    dry: bool

    @property
    def device(self) -> str:
        """The card, but for a dry run."""
        return "cpu" if self.dry else "cuda"

    def card_only(self, what: str) -> None:
        """Raises Skip in a dry run."""
        if self.dry:
            raise Skip(f"needs a card: {what}")


Case = Callable[[Here], dict[str, Any]]


def run_part(name: str, rows: Path, dry: bool) -> None:
    """The cases of a part that `rows` has nothing of yet; a line when one begins, and one with what it gave."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
    sys.modules["check"] = sys.modules["__main__"]
    cases: dict[str, Case] = importlib.import_module(name).CASES
    seen = {row["case"] for row in read(rows) if row["part"] == name}
    for case, work in cases.items():
        if case in seen:
            continue
        write(rows, {"part": name, "case": case, "status": "began"})
        began, found = time.perf_counter(), {}
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            os.chdir(folder)
            try:
                found = {"status": "ok", **work(Here(dry))}
            except Skip as reason:
                found = {"status": "skipped", "why": str(reason)}
            except Exception as error:
                traceback.print_exc()
                found = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:600]}
            os.chdir(ROOT)
        seconds = round(time.perf_counter() - began, 1)
        write(rows, {"part": name, "case": case, "seconds": seconds, **found})
        if "CUDA" in found.get("why", ""):
            os._exit(1)  # the card's context may be broken


def read(rows: Path) -> list[dict[str, Any]]:
    """The last line of each case, in their order; a line that was cut counts for nothing."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else ():
        with suppress(ValueError):
            row = json.loads(line)
            found[row["part"], row["case"]] = row
    return list(found.values())


def write(rows: Path, row: dict[str, Any]) -> None:
    """One more line."""
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def guard_part(name: str, rows: Path, seconds: float, dry: bool, told: Callable[[], None]) -> None:
    """A part in processes of its own, until all of its cases were tried or its time is over."""
    ends = time.monotonic() + seconds
    command = [sys.executable, str(HERE / "check.py"), "--part", name, "--rows", str(rows), *(["--dry"] if dry else [])]
    with (rows.parent / f"{name}.log").open("ab") as log:
        while True:
            before = len(read(rows))
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **QUIET}, stdout=log, stderr=log, start_new_session=True
            )
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(0.2)
                told()
            in_time, code = process.poll() is not None, process.poll()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has left behind, too
            process.wait()
            for row in read(rows):
                if row["part"] == name and row["status"] == "began":
                    why = f"its process ended ({code})" if in_time else f"the part's {seconds:.0f} s were over"
                    write(rows, {**row, "status": "failed" if in_time else "cut", "why": why})
            stuck = in_time and code and len(read(rows)) == before
            if stuck:
                write(rows, {"part": name, "case": "the part itself", "status": "failed", "why": f"it ended ({code})"})
            told()
            if not code or not in_time or stuck:
                return


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a case."""
    lines = ["| part | case | | seconds | figures |", "|---|---|---|---:|---|"]
    for row in rows:
        figures = {key: value for key, value in row.items() if key not in ("part", "case", "status", "seconds")}
        said = "; ".join(f"{key} {shown(value)}" if key != "why" else str(value) for key, value in figures.items())
        said = " ".join(said.replace("|", "/").split())
        lines.append(f"| {row['part']} | {row['case']} | {row['status']} | {row.get('seconds', '')} | {said} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """Four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    """As the options say; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default docs/gpu; of a dry run runs/gpu-check")
    parser.add_argument("--seconds", type=float, default=840, help="for everything (default 840)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.part:
        run_part(asked.part, asked.rows, asked.dry)
        return 0
    out = (asked.out or ROOT / ("runs/gpu-check" if asked.dry else "docs/gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + asked.seconds
    printed: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        rows = Path(folder) / "rows.jsonl"
        for row in json.loads(earlier.read_text()) if (earlier := out / "results.json").is_file() else ():
            if row["part"] not in asked.only:
                write(rows, row)
                printed.add((row["part"], row["case"]))

        def told() -> None:
            found = read(rows)
            fresh = [row for row in found if row["status"] != "began" and (row["part"], row["case"]) not in printed]
            if not fresh:
                return
            print("\n".join(table(fresh).splitlines()[2:]), flush=True)
            printed.update((row["part"], row["case"]) for row in fresh)
            (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (out / "results.md").write_text(table(found), encoding="utf-8")

        for name in asked.only:
            left = ends - time.monotonic() - GRACE
            if left <= GRACE:
                print(f"{name}: no time was left", flush=True)
                continue
            own = PARTS[name] * (PATIENCE if asked.dry else 1)
            guard_part(name, rows, min(own, left), asked.dry, told)
            log = Path(folder) / f"{name}.log"
            if any(row["part"] == name and row["status"] in ("failed", "cut") for row in read(rows)):
                (out / f"{name}.log").write_bytes(log.read_bytes()[-200_000:])
        found = [row for row in read(rows) if row["part"] in asked.only]
    counts = {status: sum(row["status"] == status for row in found) for status in ("ok", "failed", "cut", "skipped")}
    print(", ".join(f"{number} {status}" for status, number in counts.items() if number) + f"; {out / 'results.md'}")
    return int(counts["failed"] + counts["cut"] > 0)


if __name__ == "__main__":
    sys.exit(main())
