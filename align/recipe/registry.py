"""The stages of a chain, in the order they run: the one table that everything which goes through stages iterates over.

Recipe, lineage, checks, chain, post-stage evaluation, memory plan, report and command line read what they need from a
`Stage`. Adding one is its file in `align/stages`, its record here, its section, an entry script, a recipe and a test.
Functions are named "module:function" and imported when they are called, so that nothing here knows torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.recipe.dpo_section import DPOSection
from align.recipe.ppo_section import PPOSection
from align.recipe.rejection_section import RejectionSection
from align.recipe.reward_section import Rewarded
from align.recipe.section import StageSection
from align.recipe.supervised_sections import BaseSection, RewardSection, SFTSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: its key in the recipe and the name of its folder are `name`.

    Attributes:
        section: of the recipe.
        records: the kind of record that its `data` holds, a class of `data_formats.records` by name.
        parents: whose model it starts from where `init_from` names none: the first of them that the recipe has, else
            `model.path`; a stage without parents can make a new model.
        makes: whether others may start a policy from its model, or score with it.
        adapted: whether it trains the recipe's adapter; else all weights, whatever the recipe says of adapters.
        run: `run(recipe, stage)` trains, leaves the folder behind and returns the summary.
        evaluate: each `evaluate(recipe, stage, summary)` is called once the stage is done and returns what is added to
            its summary, on every rank; rows under `headline` (what, before, after) end its part of the chain's table.
        beside: folders under `output_dir` that `evaluate` writes; they go where the stage is started anew.
        headline: `headline(summary, rows)` yields its part of the table, `rows` being those in its summary.
        figures: the section of the report that draws its metrics.
        plan: `plan(recipe, stage, ...)` predicts its memory (`align.plan.predict`).
        entry: the script in `align/` that runs it alone, by default of its own name.
        in_rounds: where the recipe has `rounds`, whether it runs in each of them; else once, before them.
        needs: packages of an extra without which it cannot run.
    """

    name: str
    section: type[StageSection]
    records: Literal["Document", "Demonstration", "Comparison", "Prompt"]
    run: str
    parents: tuple[str, ...] = ()
    makes: Literal["policy", "reward"] = "policy"
    adapted: bool = True
    evaluate: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    headline: str = "align.report.headline:plain"
    figures: Literal["supervised", "reward", "rejection", "ppo"] = "supervised"
    plan: str = "align.plan.predict:plan_supervised_stage"
    entry: str = ""
    in_rounds: bool = False
    needs: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether it samples replies and needs a reward for them."""
        return issubclass(self.section, Rewarded)

    @property
    def script(self) -> str:
        """The entry's name, without its ending."""
        return self.entry or self.name

    @property
    def command(self) -> str:
        """What a user types to run the stage alone."""
        option = "" if self.script == self.name else f" --stage {self.name}"
        return f"accelerate launch align/{self.script}.py RECIPE{option}"


_RECORDS = (
    Stage(
        name="base",
        section=BaseSection,
        records="Document",
        run="align.stages.run_base:run_base",
        adapted=False,
        headline="align.report.headline:losses",
    ),
    Stage(
        name="sft",
        section=SFTSection,
        records="Demonstration",
        run="align.stages.run_sft:run_sft",
        parents=("base",),
        evaluate=("align.stages.policy_evaluation:evaluate_sft",),
        headline="align.report.headline:losses",
    ),
    Stage(
        name="pmp",
        section=RewardSection,
        records="Comparison",
        run="align.stages.run_reward:run_reward",
        parents=("base",),
        makes="reward",
        headline="align.report.headline:accuracies",
        figures="reward",
        entry="rm",
    ),
    Stage(
        name="rm",
        section=RewardSection,
        records="Comparison",
        run="align.stages.run_reward:run_reward",
        parents=("pmp", "base"),
        makes="reward",
        evaluate=("align.stages.reward_controls:without_pmp", "align.stages.reward_controls:by_manners"),
        beside=("rm_without_pmp",),
        headline="align.report.headline:accuracies",
        figures="reward",
        in_rounds=True,
    ),
    Stage(
        name="rejection",
        section=RejectionSection,
        records="Prompt",
        run="align.stages.run_rejection:run_rejection",
        parents=("sft",),
        evaluate=("align.stages.policy_evaluation:evaluate_policy",),
        figures="rejection",
        in_rounds=True,
    ),
    Stage(
        name="dpo",
        section=DPOSection,
        records="Comparison",
        run="align.stages.run_dpo:run_dpo",
        parents=("rejection", "sft"),
        evaluate=("align.stages.dpo_evaluation:evaluate_dpo",),
        headline="align.report.headline:implicit_rewards",
        figures="reward",
        needs=("trl",),
        in_rounds=True,
    ),
    Stage(
        name="ppo",
        section=PPOSection,
        records="Prompt",
        run="align.stages.run_ppo:run_ppo",
        parents=("dpo", "rejection", "sft"),
        evaluate=("align.stages.policy_evaluation:evaluate_policy",),
        headline="align.report.headline:policy",
        figures="ppo",
        plan="align.plan.predict:plan_ppo_stage",
        in_rounds=True,
    ),
)

STAGES = {stage.name: stage for stage in _RECORDS}
REWARD_STAGES = tuple(stage.name for stage in _RECORDS if stage.makes == "reward")
SAMPLING_STAGES = tuple(stage.name for stage in _RECORDS if stage.samples)
ROUND_STAGES = tuple(stage.name for stage in _RECORDS if stage.in_rounds)
ENTRIES = tuple(dict.fromkeys(stage.script for stage in _RECORDS))
