"""The `rounds` section: the later stages of a recipe run several times, each time on newly judged replies.

Llama 2 (3.2 and 3.2.3) and Llama 3 (4.1): replies of the newest policy are collected and judged, a new reward model is
trained on the comparisons of all rounds, and the policy goes on from where the round before left it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from align.recipe.fields import Source
from align.recipe.judge_section import ComparisonJudgeSection, LLMJudgeSection
from align.recipe.reward_section import GatePart, Plain, RewardPart, apart_rules, plain_part
from align.recipe.section import Listed, Positive, Section


class PeopleSection(Section):
    """People: each round stops until they have judged its replies (`align annotate`)."""

    kind: Literal["people"]
    """People who judge with `align annotate`."""


def _section_of(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


RoundsJudge = Annotated[
    Plain | GatePart | ComparisonJudgeSection | LLMJudgeSection | PeopleSection, Field(discriminator="kind")
]


class RoundsSection(Section):
    """rm, rejection, dpo and ppo, as far as the recipe has them, run `num_rounds` times; the stages before them once.

    Each round has a folder, `<output_dir>/round-N`, and collects replies as `collect` says, `newest` and `before` being
    the policies of the last two rounds. `judge` compares them. The reward model is trained anew, on its `data` and the
    comparisons of all rounds; the policy starts from that of the round before, which is also what it is held against.
    A plain number stands for `num_rounds`.
    """

    num_rounds: Positive
    """How often; a finished run goes on where it is raised."""
    judge: Annotated[RoundsJudge, BeforeValidator(_section_of)] = PeopleSection(kind="people")
    """Who compares the collected replies: `people`, the default, or a judge as of ppo (a part of a reward, a function
    that sees both replies, a language model). One that is no people also compares each round's policy with the one
    before and with the first."""
    eval_data: Annotated[tuple[Source, ...], Listed] = ()
    """Held-out prompts, which the policy of every round answers; without them rounds are not compared."""

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        return {"num_rounds": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def by_people(self) -> bool:
        """Whether people judge."""
        return isinstance(self.judge, PeopleSection)

    def judge_parts(self) -> Iterator[tuple[str, RewardPart]]:
        """The parts of a `judge` that is a reward, with their keys below the section."""
        if isinstance(self.judge, RewardPart):
            yield from plain_part("judge", self.judge)

    def rules(self) -> list[tuple[str, str]]:
        return [*super().rules(), *apart_rules(self.judge_parts())]

    def described(self) -> str:
        """A sentence for the plan that `align check` prints."""
        who = "people compare" if self.by_people else f"a judge ({self.judge.kind}) compares"
        return f"rounds: {self.num_rounds}, each in a folder of its own, round-N; {who} the collected replies"
