"""What a recipe must know of an advantage estimator, before torch is there.

The estimators themselves are classes in `align.trainers.ppo.advantages`; one from outside is registered there, which
adds its row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Estimator:
    """Facts of an estimator.

    Attributes:
        critic: it needs a critic's values; without, none is loaded.
        groups: it compares the replies to one prompt, and needs two of each. A reply is then one action.
        discounts: it reads `gamma`.
        whitens: its advantages are whitened over the batch unless the recipe says otherwise.
        kl_in: where the KL is unless the recipe says otherwise. Where rewards are divided by their deviation, replies
            that are rewarded alike would otherwise differ by nothing but their KL, blown up to deviation 1.
    """

    critic: bool = False
    groups: bool = False
    discounts: bool = False
    whitens: bool = False
    kl_in: Literal["reward", "loss"] = "reward"


ESTIMATORS: dict[str, Estimator] = {
    "gae": Estimator(critic=True, discounts=True, whitens=True),
    "rloo": Estimator(groups=True),
    "grpo": Estimator(groups=True, kl_in="loss"),
    "dr_grpo": Estimator(groups=True),
    "reinforce_pp": Estimator(discounts=True, whitens=True),
}
