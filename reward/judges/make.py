"""The judge that a recipe's section or a command line names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reward.judges.functions import FunctionJudge
from reward.judges.llm import LLMJudge
from reward.judges.protocol import Judge
from reward.judges.rankings import RankingsJudge

JUDGES: dict[str, Callable[..., Judge]] = {
    "llm": LLMJudge,
    "rankings": RankingsJudge,
    "comparison": FunctionJudge,
}


def make_judge(kind: str, **arguments: Any) -> Judge:
    """The judge of a kind: `make_judge(**section.model_dump(exclude_none=True))` of a recipe's section.

    Args:
        kind: `llm`, `rankings`, `comparison` (its `function` loaded); a reward is no kind of these:
            `reward.judges.rewards.RewardJudge`.
        arguments: those of the class.

    Raises:
        AlignError, ValueError: see the classes.
    """
    return JUDGES[kind](**arguments)
