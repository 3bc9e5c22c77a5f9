"""The whole recipe: one YAML file is one chain."""

from __future__ import annotations

from pydantic import Field, model_validator

from align.recipe.fields import Count, ModelSection, Section, TinyWorldSection
from align.recipe.ppo import PPOSection
from align.recipe.stages import BaseSection, RewardSection, SFTSection

STAGES = ("base", "sft", "pmp", "rm", "ppo")
DEFAULT_PARENTS = {"base": (), "sft": ("base",), "pmp": ("base",), "rm": ("pmp", "base"), "ppo": ("sft",)}


class Recipe(Section):
    """`name`, where to write, the model, and the stages, each optional."""

    name: str = Field(min_length=1)
    output_dir: str
    seed: Count = 0
    data_root: str | None = None
    report_to: tuple[str, ...] = ()
    model: ModelSection
    tinyworld: TinyWorldSection | None = None
    base: BaseSection | None = None
    sft: SFTSection | None = None
    pmp: RewardSection | None = None
    rm: RewardSection | None = None
    ppo: PPOSection | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages this recipe has, in the order they run."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    @model_validator(mode="after")
    def _one_model(self) -> Recipe:
        if (self.model.path is None) == (self.model.architecture is None):
            raise ValueError("model needs exactly one of 'path' (a folder or hub id) and 'architecture' (a new tiny model)")
        if self.model.architecture is not None and self.base is None:
            raise ValueError("model.architecture makes a new model, which needs a 'base' stage to train it")
        return self
