"""Whether the trackers of `report_to` are there: told at once, not when the first of them is asked for.

Nothing is imported for it: a package is looked for, not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from align.recipe.errors import did_you_mean
from align.recipe.schema import Recipe
from align.runtime.packages import is_installed, missing_package

# transformers' names of trackers and the packages of which each needs all (one of several where they are joined by |).
TRACKERS = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard|tensorboardX",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
# Those that accelerate knows, by which every stage sends (`align.runs.trackers`); of the others it has transformers'
# callback.
SENDING = ("clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def tracker_problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with `report_to`."""
    for index, name in enumerate(recipe.report_to):
        key = f"report_to.{index}"
        if name == "none":
            yield f"{key}: 'none' is no tracker; write report_to: [] for none"
        elif name not in TRACKERS:
            near = did_you_mean(name, TRACKERS)
            hint = f"did you mean '{near}'?" if near else f"known are {', '.join(TRACKERS)}"
            yield f"{key}: there is no tracker '{name}'; {hint}"
        elif missing := [package for package in TRACKERS[name] if not any(map(is_installed, package.split("|")))]:
            yield missing_package(f"{key}: '{name}'", missing[0].partition("|")[0])
