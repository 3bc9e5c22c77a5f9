"""The files of a folder -> the cases of the benchmarks among them, known by their rows.

Any mixture of files as they are downloaded, in any folders below. What is not known is named and passed over, and so
are the splits of a benchmark that its figure is not over, where the one that it is over is there.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

from align.evaluation.reward_card.benchmarks import BENCHMARKS, Benchmark
from align.evaluation.reward_card.cases import Case
from align.evaluation.reward_card.rows import Place
from align.runtime.errors import MissingFileError
from align.runtime.paths import typed_path
from data_formats.errors import MEBIBYTE, DataError, EmptyDatasetError
from data_formats.files import ROW_ENDINGS, ending, raw_rows
from data_formats.formats import Dropped

SPLIT_WORDS = frozenset({"train", "training", "validation", "val", "test", "raw", "filtered"})
TWICE = "stands in another file too"


@dataclass(slots=True)
class FileRead:
    """A file of a benchmark: its name in the folder, how many rows it has, and those that were left out, by reason."""

    name: str
    benchmark: str
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Found:
    """What a folder holds: cases by the benchmark's key, the files they are from, and the others with a reason."""

    cases: dict[str, list[Case]]
    files: list[FileRead]
    passed_over: dict[str, str]


def find(folder: str | Path, *, limit: int | None = None, max_row_mb: float = 64) -> Found:
    """Read the benchmarks in `folder`.

    Args:
        limit: rows of each part of a benchmark.
        max_row_mb: a row's size at most.

    Raises:
        MissingFileError: no such folder.
        DataError: it is a file; a row of a benchmark is not what it should be; names file, row and field.
        EmptyDatasetError: no row of any benchmark is in it.
    """
    root, most = typed_path(folder), int(max_row_mb * MEBIBYTE)
    if not root.exists():
        raise MissingFileError(f"{root}: no such folder; name the one that the benchmarks' files were downloaded to")
    if not root.is_dir():
        raise DataError("this is a file; name the folder that it lies in", path=root)
    known: dict[str, list[tuple[Path, Benchmark]]] = defaultdict(list)
    passed_over: dict[str, str] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        found = _benchmark_of(path, name, most)
        if isinstance(found, str):
            passed_over[name] = found
        else:
            known[found.key].append((path, found))
    cases: dict[str, list[Case]] = {}
    files: list[FileRead] = []
    for key, held in known.items():
        names = {path: path.relative_to(root).as_posix() for path, _ in held}
        counted = _of_the_split([*names.values()], held[0][1])
        others = f"of a split that is not counted ({' or '.join(held[0][1].splits)} is)"
        passed_over |= {name: others for name in names.values() if name not in counted}
        read = _CasesOf(held[0][1], limit)
        files += [read.file(path, name, most) for path, name in names.items() if name in counted]
        cases[key] = read.cases
    if not any(cases.values()):
        raise EmptyDatasetError(f"no row of a benchmark that is known is in {root} ({_some(passed_over)})")
    return Found({key: own for key, own in cases.items() if own}, files, passed_over)


def _some(passed_over: dict[str, str], most: int = 5) -> str:
    told = [f"{name}: {why}" for name, why in passed_over.items()]
    return "; ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "") or "it holds no file"


def _benchmark_of(path: Path, name: str, most: int) -> Benchmark | str:
    """Whose rows a file has, or why nobody's."""
    if ending(path) not in ROW_ENDINGS:
        return "no file of rows"
    try:
        _, row = next(raw_rows(path, most), (0, None))
    except DataError as error:
        return error.placed
    if row is None:
        return "it has no rows"
    if not isinstance(row, dict):
        return "its rows are no objects"
    found = next((one for one in BENCHMARKS if one.fits(row, name)), None)
    return found or f"its rows are those of no benchmark that is known (fields {', '.join(map(str, list(row)[:8]))})"


def _of_the_split(names: list[str], benchmark: Benchmark) -> set[str]:
    """The files that are counted: those that name no split, and those of the best split that is there."""
    if not benchmark.splits:
        return set(names)
    ranks = {}
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower())) & SPLIT_WORDS
        wanted = [rank for rank, split in enumerate(benchmark.splits) if split in words]
        ranks[name] = min(wanted) if wanted else -1 if not words else None
    best = min((rank for rank in ranks.values() if rank is not None and rank >= 0), default=None)
    return {name for name, rank in ranks.items() if rank == -1 or (rank is not None and rank == best)}


class _CasesOf:
    """The cases of one benchmark, file after file: of a row in several files the first, of each part `limit`."""

    def __init__(self, benchmark: Benchmark, limit: int | None):
        self.benchmark, self.limit = benchmark, limit
        self.cases: list[Case] = []
        self._file_of: dict[Hashable, str] = {}
        self._read: Counter[Hashable] = Counter()

    def file(self, path: Path, name: str, most: int) -> FileRead:
        """Read a file; see `find` for errors."""
        report = FileRead(name, self.benchmark.key)
        for line, row in raw_rows(path, most):
            report.rows += 1
            try:
                if not isinstance(row, dict):
                    raise DataError("expected an object with the benchmark's fields")
                case = self.benchmark.read(row, Place(name, int(line)))
            except Dropped as reason:
                report.left_out[str(reason)] += 1
                continue
            except DataError as error:
                raise DataError(error.problem, path=path, line=line, field=error.field) from None
            said = (case.id, *((one.prompt, one.reply) for one in case.replies))
            if self._file_of.setdefault(said, name) != name:
                report.left_out[TWICE] += 1
            elif self._is_within(case):
                self.cases.append(case)
        return report

    def _is_within(self, case: Case) -> bool:
        part = (*case.labels.values(), case.id.partition(":")[0] if ":" in case.id else "")
        self._read[part] += 1
        return self.limit is None or self._read[part] <= self.limit
