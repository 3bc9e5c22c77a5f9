"""`align data verify FILE OUT.jsonl`: demonstrations whose code passes the tests of their rows (Llama 3, 4.3.1).

The code of a row's last reply is parsed and run against the row's tests in a sandbox (`reward.sandbox`; which tests:
`reward.code_tests`). What passes goes to OUT.jsonl, in our own rows with their tests; what does not goes to
OUT.failed.jsonl with the reason. Both say under `verified` how many tests there are and how many passed. With --lint
ruff looks for names that are nowhere defined and the like first, without running anything.

Rows are verified in pieces that are kept in OUT.jsonl.pieces: after a kill the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from align.commands.options import positive, share, source
from align.runtime import files
from align.runtime.errors import AlignError, StorageError
from align.runtime.packages import require_package
from align.runtime.paths import typed_path
from align.runtime.pieces import pieces_in
from align.runtime.terminal import say, shortened
from data_formats import DataError, EmptyDatasetError, Stream
from data_formats.records import Demonstration
from data_formats.writing import as_row
from reward.code_tests import TEST_FIELDS, TestsError, code_of, prefix_of, read_tests
from reward.protocol import Sample
from reward.sandbox.start import Budget
from reward.unit_tests import TestsResult, UnitTests, parsed

AT_ONCE = 256  # demonstrations of a piece
RULES = "E9,F63,F7,F82"  # of ruff: no Python, comparisons that are always so, misplaced statements, undefined names
LINT_SECONDS = 600  # for a piece
EXAMPLES = 3  # of why, of each reason
UNTESTED, LINT = "no_tests", "lint"


def add_parser(what: Any) -> argparse.ArgumentParser:
    """Add `verify` to the subparsers of `align data`."""
    verify = what.add_parser(
        "verify", help="keep the demonstrations whose code passes their tests", description=__doc__
    )
    verify.formatter_class = argparse.RawDescriptionHelpFormatter
    verify.add_argument("path", metavar="FILE|hub:ID", type=source)
    verify.add_argument("out", metavar="OUT.jsonl", type=Path)
    words = "keep rows without tests whose code can be parsed (default: they fail)"
    verify.add_argument("--keep-untested", action="store_true", help=words)
    words = "keep rows that pass this share of their tests, less than 1 (default: all of them)"
    verify.add_argument("--threshold", type=share, default=1.0, metavar="SHARE", help=words)
    verify.add_argument("--lint", action="store_true", help="also look for undefined names (ruff)")
    words = "best: also where the kernel gives no namespaces (default %(default)s)"
    verify.add_argument("--isolation", choices=("required", "best"), default="required", help=words)
    words = "of CPU for one test (default %(default)s)"
    verify.add_argument("--seconds", type=positive, default=2, metavar="S", help=words)
    verify.add_argument("--workers", type=positive, metavar="N", help="rows at once (default: the cores)")
    verify.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return verify


class LintError(AlignError, RuntimeError):
    """Ruff is there and does not work."""


@dataclass(frozen=True, slots=True)
class ToVerify:
    """A demonstration: where it stands, what is run, and the row that is written."""

    line: int
    sample: Sample
    row: dict[str, Any]


def verify(args: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Verify what is not verified yet, join the pieces, print the figures.

    Raises:
        DataError: rows that cannot be read, tests among them.
        StorageError: the output exists, or cannot be written.
        RewardError: there is no sandbox.
        MissingPackageError, LintError: --lint without ruff, or with one that does not work.
    """
    out = typed_path(args.out)
    failed = out.with_name(f"{out.stem}.failed{out.suffix}")
    for file in (out, failed):
        if file.exists():
            raise StorageError(f"{file} exists already: remove it, or name another file")
    if args.lint:
        require_package("--lint", "ruff")
    stream = Stream(args.path, Demonstration, **options)
    total = sum(1 for _ in _asked(stream))
    if not total:
        raise EmptyDatasetError("no demonstration with a reply", path=args.path)
    settings = {name: getattr(args, name) for name in ("threshold", "keep_untested", "lint", "seconds")}
    settings |= {"data": [str(args.path), *files.stamp(args.path)]} | dict(options)
    counts: Counter[str] = Counter()
    with pieces_in(out.with_name(f"{out.name}.pieces"), settings, command="data verify") as pieces:
        asked, count = _asked(stream), -(-total // AT_ONCE)
        for number in range(count):
            pieces.make(number, partial(_verified, args, list(islice(asked, AT_ONCE))))
        examples: dict[str, list[str]] = {}
        files.write_json_lines(failed, _failed(pieces.rows(count), counts, examples))
        files.write_json_lines(out, (row["row"] for row in pieces.rows(count) if row["kept"]))
    _show(args, out, failed, counts, examples)


def _asked(stream: Stream) -> Iterator[ToVerify]:
    """Raises DataError, naming the row, where its tests cannot be read."""
    for line, columns, record in stream.placed():
        if (exchange := record.last_exchange()) is not None:
            try:
                read_tests(columns)
            except TestsError as error:
                raise DataError(str(error), path=str(stream.source), line=line) from error
            tests = {name: columns[name] for name in TEST_FIELDS if columns.get(name) is not None}
            yield ToVerify(line, Sample(exchange[0], exchange[1], columns=columns), as_row(record) | tests)


def _verified(args: argparse.Namespace, some: Sequence[ToVerify]) -> Iterator[dict[str, Any]]:
    """A line a demonstration."""
    budget = Budget(isolation=args.isolation, seconds=args.seconds, workers=args.workers)
    rule = UnitTests(partial=True, missing=0.0, budget=budget, name="data verify")
    samples = [one.sample for one in some]
    linted = _linted(samples) if args.lint else [""] * len(some)
    clean = [at for at, problem in enumerate(linted) if not problem]
    found = dict(zip(clean, rule.results([samples[at] for at in clean]), strict=True))
    without = [at for at in clean if found[at] is None]
    static = dict(zip(without, parsed([samples[at] for at in without], budget, rule.name), strict=True))
    for at, one in enumerate(some):
        result = found.get(at) or static.get(at) or TestsResult(0, 0, LINT, linted[at])
        untested = at in static and not result.reason
        score = result.passed / result.total if result.total else None
        kept = args.keep_untested if untested else score is not None and score >= args.threshold
        reason = "" if kept else UNTESTED if untested else result.reason
        told = {"passed": result.passed, "total": result.total, "score": score, "reason": reason}
        told |= {"why": shortened(result.why, 300)} if result.why and not kept else {}
        yield {"line": one.line, "kept": kept, "row": one.row | {"verified": told}}


def _linted(samples: Sequence[Sample]) -> list[str]:
    """What ruff finds in the code of each; "" for nothing. It parses, and runs nothing."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for at, sample in enumerate(samples):
            tests = read_tests(sample.columns or {})
            prefix = prefix_of(sample, tests.function) if tests is not None and tests.check else ""
            code = code_of(sample.completion)
            for name, text in (("alone", code), ("behind", prefix + code)):
                (Path(folder) / f"{at}-{name}.py").write_text(text, encoding="utf-8", errors="replace")
        words = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--exit-zero", "--ignore-noqa"]
        words += ["--select", RULES]
        problems: dict[str, str] = {}
        for one in _ruff([*words, "--output-format", "json", folder]):
            problems.setdefault(Path(one["filename"]).stem, f"{one['code'] or 'syntax'}: {one['message']}")
        for at in range(len(samples)):
            both = [problems.get(f"{at}-{name}", "") for name in ("behind", "alone")]
            found.append(both[0] if all(both) else "")
    return found


def _ruff(words: Sequence[str]) -> list[dict[str, Any]]:
    """What it prints. Raises LintError: it fails, or prints something else."""
    try:
        told = subprocess.run(words, capture_output=True, check=True, timeout=LINT_SECONDS)
        return json.loads(told.stdout)
    except subprocess.CalledProcessError as error:
        said = shortened(error.stderr.decode("utf-8", "replace").strip())
        told = f"--lint: ruff ends with {error.returncode}: {said!r}"
        raise LintError(f"{told}; mend its installation, or leave --lint out") from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise LintError(f"--lint: ruff gave nothing of use ({error}); leave --lint out") from error


def _failed(
    rows: Iterator[dict[str, Any]], counts: Counter[str], examples: dict[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """The rows that failed; all are counted, and a few of the reasons shown."""
    for row in rows:
        told = row["row"]["verified"]
        counts["rows"] += 1
        counts["tests"] += told["total"]
        counts["tests passed"] += told["passed"]
        if row["kept"]:
            counts["kept"] += 1
            continue
        counts[told["reason"]] += 1
        shown = examples.setdefault(told["reason"], [])
        if len(shown) < EXAMPLES:
            shown.append(f"row {row['line']}" + (f": {told['why']}" if told.get("why") else ""))
        yield {"row": row["line"]} | row["row"]


def _show(
    args: argparse.Namespace, out: Path, failed: Path, counts: Counter[str], examples: dict[str, list[str]]
) -> None:
    reasons = {reason: counts[reason] for reason in sorted(examples, key=lambda one: -counts[one])}
    if args.json:
        figures = {name: counts[name] for name in ("rows", "kept", "tests", "tests passed")}
        say(json.dumps(figures | {"failed": reasons, "out": str(out)}, ensure_ascii=False, indent=2))
        return
    say(f"{counts['kept']} of {counts['rows']} demonstrations kept: {out}")
    say(f"{counts['tests passed']} of {counts['tests']} tests passed")
    for reason, number in reasons.items():
        say(f"  {number} failed, {reason.replace('_', ' ')}: {'; '.join(examples[reason])}")
    if reasons:
        say(f"what failed, and why: {failed}")
