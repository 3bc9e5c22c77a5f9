"""The `dpo` section: the policy is trained on comparisons themselves, without a reward model and without sampling."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.recipe.fields import Source
from align.recipe.section import Count, Positive, Rate
from align.recipe.supervised_sections import SupervisedSection, keep_best_rules


class DPOSection(SupervisedSection):
    """Direct preference optimization of the policy on comparisons, against the model that it starts from."""

    unit: ClassVar[str] = "pairs"
    most_epochs: ClassVar[float] = 3
    why_most: ClassVar[str] = "it learns its pairs by heart in the second; Zephyr's three are the most known to help"

    data: tuple[Source, ...] = ()
    """Comparisons; there may be none where the recipe has `rounds`, which bring theirs."""
    beta: Rate = 0.1
    """What a nat of distance from the starting model weighs: the smaller, the further the policy goes."""
    nll_coef: float = Field(0.0, ge=0)
    """Factor of the chosen replies' negative log-likelihood a token (Llama 3: 0.2; TRL: `rpo_alpha`), which keeps
    their probability from falling together with that of the rejected ones."""
    mask_formatting: bool = False
    """Leave out the tokens that end a reply, as what opens it always is (Llama 3): both sides have them, so they would
    be made likelier and unlikelier at once."""
    min_grade: float | None = None
    """Train on pairs of that grade or more, and on those without any (3: better and significantly better, which is all
    that Llama 3 kept)."""
    newest_round: bool | None = None
    """Train on the comparisons of the newest round alone (Llama 3): those of earlier rounds compare replies that the
    policy no longer gives. A row tells its `round`, as those of `align merge-judgments` do. By default where the recipe
    has `rounds`, whose newest comparisons are then all that is read."""
    keep_best: bool = False
    """Leave the model of the lowest held-out loss, not the last one."""
    eval_num_replies: Count = 64
    """Prompts of held-out pairs that a reply is sampled to at each evaluation, and on which the policy before and after
    is compared at the end."""
    max_completion_length: Positive = 128
    """Tokens of a sampled reply."""

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.attention_dropout:
            sentence = (
                "would make the policy's probabilities differ from the starting model's by chance; remove the key"
            )
            broken.append(("attention_dropout", sentence))
        return broken + keep_best_rules(self)

    def described(self) -> str:
        chosen = [] if self.min_grade is None else [f"of grade {self.min_grade:g} or more"]
        chosen += ["of the newest round"] if self.newest_round else []
        text = f"dpo: {self.length} on pairs {' and '.join(chosen)}".rstrip() + f"; beta {self.beta:g}"
        text += f", {self.nll_coef:g} of the chosen replies' likelihood" if self.nll_coef else ""
        text += "" if self.mixture is None else f"; {self.mixture.described()}"
        return text + ("; end tokens without loss" if self.mask_formatting else "")
