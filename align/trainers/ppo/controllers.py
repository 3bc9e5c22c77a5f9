"""Coefficients of PPO that follow a measurement: that of the KL penalty, and that of the ptx loss."""

from __future__ import annotations

import math
from typing import Any

START, LARGEST_MOVE = 0.1, 2.0
LARGEST_ERROR = 0.2


class KLController:
    """The coefficient of the KL penalty: fixed, or led to a target (Ziegler et al. 2019, section 2.2).

    Adaptive: `coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * replies / horizon`, for the next iteration, after each in
    which the policy moved; while the critic warms up the KL says nothing.

    Args:
        coef: where it starts, reward a nat.
        target: nats a reply; None keeps `coef`.
        horizon: replies in which a constant largest error would change the coefficient by a fifth (to first order).
    """

    def __init__(self, coef: float, target: float | None = None, horizon: int = 10_000):
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, replies: int) -> None:
        """Take an iteration's mean KL in nats a reply (k1), and how many replies it was measured on."""
        if self.target is None or not math.isfinite(kl):
            return
        error = min(max(kl / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.coef *= 1 + error * replies / self.horizon

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; a fixed coefficient stays the recipe's."""
        if self.target is not None:
            self.coef = float(state["coef"])


class PtxController:
    """The coefficient of the ptx loss: fixed, or led to where `||g_ptx|| / ||g_ppo||` is `ratio`.

    Automatic: after the first policy step of each iteration `coef *= clip(ratio / measured, 1/2, 2)`, where `measured`
    is the ratio of the norms with the coefficient as it was; it starts at 0.1.
    """

    def __init__(self, coef: float | str, ratio: float):
        self.automatic, self.ratio = coef == "auto", ratio
        self.coef = START if coef == "auto" else float(coef)

    def update(self, measured: float) -> None:
        """Take a ratio of gradient norms; one that is 0 or not finite says nothing."""
        if self.automatic and math.isfinite(measured) and measured > 0:
            self.coef *= min(max(self.ratio / measured, 1 / LARGEST_MOVE), LARGEST_MOVE)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; a fixed coefficient stays the recipe's."""
        if self.automatic:
            self.coef = float(state["coef"])
