"""What a turn or row says about being trained on: `weight: 0` (OpenAI), `loss: false` (ms-swift), `train: false` …

A turn is trained whole or not at all, so only 0 and 1, false and true are understood; a share between is refused.
"""

from __future__ import annotations

from typing import Any

from data_formats.errors import DataError
from data_formats.fields import NOTHING, present
from data_formats.formats import Dropped, as_flag, shown

LOSS_FIELDS = ("weight", "loss_weight", "loss_mask", "loss", "train", "trainable", "training")
WITHOUT_LOSS = "nothing to train on (weight 0)"


def loss_of(raw: dict[str, Any], at: str) -> bool | None:
    """Whether a turn or row is to be trained on; None where it does not say.

    Args:
        at: where it stands, "" for a row.

    Raises:
        DataError: another weight than 0 or 1, or fields that contradict each other.
    """
    said: dict[str, bool] = {}
    for name in present(raw, LOSS_FIELDS):
        value = raw.get(name)
        if value in NOTHING:
            continue
        flag = as_flag(value)
        if flag is None:
            problem = f"trained whole (1, true) or not at all (0, false) is what can be said, found {shown(value)}"
            raise DataError(problem, field=f"{at}.{name}" if at else name)
        said[name] = flag
    if len(set(said.values())) > 1:
        told = ", ".join(f"{name} {shown(raw[name])}" for name in said)
        raise DataError(f"the fields contradict each other: {told}", field=at or None)
    return next(iter(said.values()), None)


def drop_without_loss(row: dict[str, Any]) -> None:
    """Nothing, unless the row as a whole is not to be trained on.

    Raises:
        Dropped: it is not.
        DataError: see `loss_of`.
    """
    if loss_of(row, "") is False:
        raise Dropped(WITHOUT_LOSS)
