"""Tasks of EleutherAI's lm-evaluation-harness (0.4), asked of models that are in memory. The extra `lm-eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from align.evaluation.compare import mean, paired_difference
from align.runtime.errors import AlignError, reason_of
from align.runtime.packages import require_package

Samples = dict[str, dict[str, dict[Any, float]]]  # task -> metric -> document -> value


class HarnessError(AlignError, RuntimeError):
    """A task that the harness could not run."""


def require_harness() -> None:
    """Raises MissingPackageError where it is not installed."""
    require_package("--lm-eval", "lm_eval", "leave it out")


def ask_tasks(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str], *, limit: int | None, batch_size: int, seed: int
) -> Samples:
    """What each metric gives for each document of each task.

    Args:
        tasks: by name, or the YAML file of a task of one's own, which is named as its file is.
        limit: documents of a task at most.

    Raises:
        HarnessError: no such task, no way to its data, a model that it cannot ask.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = [Path(task) for task in tasks if task.endswith(".yaml")]
    names = [Path(task).stem if task.endswith(".yaml") else task for task in tasks]
    places = sorted({str(file.parent) for file in own})
    try:
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            limit=limit,
            task_manager=TaskManager(include_path=places or None, include_defaults=len(own) < len(tasks)),
            bootstrap_iters=0,  # the intervals are of the differences, document by document
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except AlignError:
        raise
    except Exception as error:  # whatever tasks, their data sets and metrics raise
        raise HarnessError(f"--lm-eval {','.join(tasks)}: {type(error).__name__}: {reason_of(error)}") from error
    return {task: _values(rows) for task, rows in found["samples"].items()}


def _values(rows: Sequence[dict[str, Any]]) -> dict[str, dict[Any, float]]:
    """Of rows that name their metrics those that give a number a document; a filter other than `none` is told."""
    found: dict[str, dict[Any, float]] = {}
    for row in rows:
        way = "" if row.get("filter", "none") == "none" else f", {row['filter']}"
        for metric in row.get("metrics", ()):
            value = row.get(metric)
            if isinstance(value, int | float):
                found.setdefault(f"{metric}{way}", {})[row["doc_id"]] = float(value)
    return found


def task_differences(before: Samples, after: Samples) -> dict[str, dict[str, dict[str, float]]]:
    """By task and metric `before`, `after`, their `difference` with its interval `low` to `high`, and `documents`."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task, metrics in after.items():
        for metric, values in metrics.items():
            old = before.get(task, {}).get(metric, {})
            both = [document for document in values if document in old]
            if both:
                was, now = ([[side[document]] for document in both] for side in (old, values))
                of = {"before": mean(was), "after": mean(now), "documents": len(both)}
                found.setdefault(task, {})[metric] = of | paired_difference(was, now)
    return found
