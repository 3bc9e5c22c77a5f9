"""The closed base class of every section, and the kinds of numbers their keys hold."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

from align.recipe.user_code import spelling_problem
from align.runtime.paths import typed_path
from align.runtime.secrets import shown_url

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Url = Annotated[str, PlainSerializer(shown_url)]  # written without its secrets, whoever dumps the recipe


def _usable(path: str) -> str:
    typed_path(path)
    return path


LocalPath = Annotated[str, AfterValidator(_usable)]  # one that can be looked up here, or a hub id


def as_tuple(value: Any) -> Any:
    """A list as the tuple that a strict section wants (pydantic itself takes lists only straight from JSON); a text
    alone as a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Listed = BeforeValidator(as_tuple)


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading.

    Rules between keys are returned by `rules()`, so that the loader can collect those of all sections at once
    (it validates with the context `{"collect_rules": True}`); everyone else gets a ValidationError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    mixed: ClassVar[bool] = False  # whether a list of them is a mixture by `weight`
    counts_epochs: ClassVar[bool] = False  # whether sources of its `data` may have `epochs`
    gone: ClassVar[dict[str, str]] = {}  # keys of former versions, and what became of each

    def rules(self) -> list[tuple[str, str]]:
        """Broken rules between the keys of this section: (key, sentence)."""
        broken = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            sources = [item for item in value if getattr(item, "mixed", False)] if isinstance(value, tuple) else []
            bare = [at for at, source in enumerate(sources) if source.weight is None]
            seen = [at for at, source in enumerate(sources) if source.epochs is not None]
            if 0 < len(bare) < len(sources):
                sentence = "either all sources of a list have a weight or none has; give this one a weight too"
                broken += [(f"{name}.{at}.weight", sentence) for at in bare]
            if seen and not (self.counts_epochs and name == "data"):
                sentence = "counts passes of a supervised training over its data, and here there are none; remove it"
                broken += [(f"{name}.{at}.epochs", sentence) for at in seen]
        return broken

    @model_validator(mode="after")
    def _obeys_rules(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get("collect_rules"):
            broken = [f"{key}: {sentence}" if key else sentence for key, sentence in self.rules()]
            if broken:
                raise ValueError("; ".join(broken))
        return self


class EarlyStoppingSection(Section):
    """Ends a stage whose evaluations have become no better for a while."""

    patience: Positive
    """Evaluations in a row that are no better than the best before them."""
    min_delta: float = Field(0.0, ge=0)
    """By how much an evaluation must be better to count."""
    metric: str | None = Field(None, min_length=1)
    """Figure of metrics.jsonl that evaluations log, the less the better where its name ends in `loss`; by default
    `eval_loss`, in ppo `eval/score`, in rejection `score_greedy`."""


class StageSection(Section):
    """What every stage has, whatever it does."""

    unit: ClassVar[str] = "rows"  # that its batch sizes count
    lengths: ClassVar[tuple[str, ...]] = ("max_steps", "num_train_epochs")  # keys that say for how long it trains
    stopped_by: ClassVar[str] = "eval_loss"  # the figure of `early_stopping` that names none
    most_epochs: ClassVar[float | None] = None  # passes over the data that are known to help, at most
    why_most: ClassVar[str] = ""  # by whom, and why

    early_stopping: EarlyStoppingSection | None = None
    """When to end before the last step; without the section never."""
    callbacks: Annotated[tuple[str, ...], Listed] = ()
    """Classes of transformers' `TrainerCallback`, as `file.py:Name` or `package.module:Name`, made without arguments;
    [an example](extending.md#in-a-recipe)."""
    trainer: str | None = None
    """A subclass of the stage's trainer that takes its place, as `file.py:Name` or `package.module:Name`."""

    def optimizers(self) -> dict[str, Any]:
        """The parts that hold an optimizer's options, by their key below the section ("": the section itself)."""
        return {"": self}

    def code(self) -> dict[str, str]:
        """What of the user's own code the section names, by its key below the section."""
        named = {f"callbacks.{index}": spec for index, spec in enumerate(self.callbacks)}
        return named | ({"trainer": self.trainer} if self.trainer is not None else {})

    def rules(self) -> list[tuple[str, str]]:
        own = {key: spelling_problem(spec) for key, spec in self.code().items()}
        return super().rules() + [(key, problem) for key, problem in own.items() if problem]

    def described(self) -> str:
        """A sentence for the plan that `align check` prints; "" where the tables say everything."""
        return ""
