"""The whole recipe: one YAML file is one chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, create_model

from align.recipe.collect_section import CollectSection
from align.recipe.fields import TinyWorldSection
from align.recipe.model_section import ModelSection
from align.recipe.registry import REWARD_STAGES, ROUND_STAGES, SAMPLING_STAGES, STAGES
from align.recipe.rounds_section import RoundsSection
from align.recipe.section import Count, Listed, LocalPath, Section
from align.recipe.supervised_sections import REPLY_MASKS


def _at_home(folder: str) -> str:
    """The folder with `~` expanded, since what writes there takes the name as it is."""
    return str(Path(folder).expanduser()) if folder.startswith("~") else folder


class _Recipe(Section):
    """`name`, where to write, the model, and the stages, each optional."""

    name: str = Field(min_length=1)
    """What the run is called in reports."""
    output_dir: Annotated[LocalPath, AfterValidator(_at_home)]
    """Where every stage writes its folder."""
    seed: Count = 0
    """Of everything that is drawn."""
    data_root: LocalPath | None = None
    """Folder that the paths of sources start from."""
    report_to: Annotated[tuple[str, ...], Listed] = ()
    """Trackers that the figures of every stage go to, one name or a list (`tensorboard`, `wandb`, `mlflow`, `trackio`,
    …): [where they are found](metrics.md#trackers)."""
    keep_checkpoints: Literal["all", "last", "none"] = "all"
    """Which checkpoints a finished stage keeps of those that `save_total_limit` left; without any it starts anew where
    it is to be longer."""
    hub_model_id: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    """Where the model of every finished stage is pushed to, once: this name of a repository of the hub, `-` and the
    stage's name."""
    hub_private_repo: bool = False
    """Make these repositories private ones."""
    model: ModelSection
    """The pretrained model, or the shape of a new one."""
    tinyworld: TinyWorldSection | None = None
    """Sizes of the embedded world's sets, for sources `tinyworld:NAME`."""
    collect: CollectSection | None = None
    """Replies for people or judges to compare."""
    rounds: RoundsSection | None = None
    """Going round: replies are collected and judged, and the later stages run again."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages this recipe has, in the order they run."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    def rules(self) -> list[tuple[str, str]]:
        broken = [] if self.rounds is None else self._rounds_rules()
        for stage in self.stages:  # those of comparisons may have none, where rounds bring them
            if not getattr(self, stage).data and not (self.rounds is not None and STAGES[stage].in_rounds):
                broken.append((f"{stage}.data", "is required: name comparisons"))
        for stage in REWARD_STAGES:
            section = getattr(self, stage)
            if section is not None and section.center_scores and not section.reference_data and self.sft is None:
                sentence = "needs demonstrations whose replies are to average 0: name some in reference_data"
                broken.append((f"{stage}.center_scores", sentence))
        if self.ppo is not None and self.ppo.shared_backbone is True and self.model.adapter == "none":
            sentence = "is shared by adapters, but model.adapter is none; set it to lora or qlora, or this to auto"
            broken.append(("ppo.shared_backbone", sentence))
        if self.ppo is not None and self.ppo.shared_backbone is not False and self.model.adapter != "none":
            roles = [part for part in self.ppo.offload if part != "optimizer"]
            if roles:
                sentence = f"{' and '.join(roles)} may be roles of the policy's own backbone, with nothing to offload"
                broken.append(("ppo.offload", f"{sentence}; leave them out, or set ppo.shared_backbone=false"))
        template = self.model.tokenizer.template
        if self.sft is not None and template != "chatml" and self.sft.mask not in REPLY_MASKS:
            sentence = f"looks at what stands between the turns of ChatML, and model.tokenizer.template is {template}"
            broken.append(("sft.mask", f"{self.sft.mask} {sentence}; use {' or '.join(REPLY_MASKS)}"))
        if self.sft is not None and template != "chatml" and self.sft.default_system == "template":
            does = "writes its default system turn by itself" if template == "own" else "has no system turn"
            broken.append(("sft.default_system", f"model.tokenizer.template {template} {does}; leave this out"))
        headless = [stage for stage in (*REWARD_STAGES, "ppo") if getattr(self, stage) is not None]
        if headless and set(self.model.lora.targets) == {"lm_head"}:
            sentence = "names the head alone, which the reward models and critics of"
            broken.append(("model.lora.targets", f"{sentence} {', '.join(headless)} lack; name layers below it too"))
        if self.dpo is not None and "lm_head" in self.model.lora.targets:
            sentence = "names lm_head, which DPO's trainer reads past its adapter; make it one of modules_to_save"
            broken.append(("model.lora.targets", f"{sentence}, or leave it out"))
        if self.model.architecture is None:
            return broken
        room = self.model.architecture.max_position_embeddings
        if self.base is None:
            broken.append(
                ("base", "is missing: model.architecture makes a new model, which needs a 'base' stage to train it")
            )
        for stage in self.stages:
            longest = getattr(getattr(self, stage), "max_length", 0)
            if longest > room:
                broken.append((f"{stage}.max_length", f"{longest} is more than max_position_embeddings ({room})"))
            rollout = getattr(self, stage).rollout if stage in SAMPLING_STAGES else None
            if rollout is not None and rollout.max_length > room:
                lengths = f"max_prompt_length + max_completion_length = {rollout.max_length}"
                sentence = f"{lengths} is more than max_position_embeddings ({room})"
                broken.append((f"{stage}.rollout", sentence))
        if self.ppo is not None and self.ppo.uses_ptx and self.ppo.ptx_max_length > room:
            sentence = f"{self.ppo.ptx_max_length} is more than max_position_embeddings ({room})"
            broken.append(("ppo.ptx_max_length", sentence))
        return broken

    def _rounds_rules(self) -> list[tuple[str, str]]:
        """What `rounds` lacks in the rest of the recipe."""
        broken = []
        if self.collect is None:
            broken.append(("rounds", "needs the section 'collect', which names prompts and who replies to them"))
        elif self.rounds.by_people and self.collect.num_replies > MOST_SHOWN:
            broken.append(("collect.num_replies", f"people are shown {MOST_SHOWN} replies at most; lower it"))
        policies = [stage for stage in ROUND_STAGES if STAGES[stage].makes == "policy"]
        if not any(getattr(self, stage) is not None for stage in policies):
            broken.append(("rounds", f"needs a stage that trains the policy: {', '.join(policies)}"))
        learning = [stage for stage in ROUND_STAGES if STAGES[stage].records == "Comparison"]
        if not any(getattr(self, stage) is not None for stage in learning):
            broken.append(("rounds", f"needs a stage that learns from what is judged: {', '.join(learning)}"))
        for stage in learning:
            section = getattr(self, stage)
            if section is not None:
                weighted = any(source.weight is not None for source in section.data)
                sentence = "rounds add their comparisons to these, whole: leave the weight out"
                broken += [(f"{stage}.data.0.weight", sentence)] * weighted
                sentence = "rounds add sources that it would have to name; leave it out"
                broken += [(f"{stage}.mixture", sentence)] * (section.mixture is not None)
        return broken


MOST_SHOWN = 9  # replies that `align annotate` shows side by side
_SECTIONS = {
    stage.name: (stage.section | None, Field(None, description=(stage.section.__doc__ or "").partition("\n\n")[0]))
    for stage in STAGES.values()
}
Recipe = create_model("Recipe", __base__=_Recipe, __module__=__name__, __doc__=_Recipe.__doc__, **_SECTIONS)
