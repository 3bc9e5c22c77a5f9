"""The `rejection` section: rejection-sampling finetuning (Llama 2, arXiv 2307.09288, section 3.2.3)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.recipe.fields import Source
from align.recipe.reward_section import Rewarded
from align.recipe.rollout_section import EvaluationSection, RolloutSection
from align.recipe.section import Listed, LocalPath, Positive, Share
from align.recipe.supervised_sections import LossReduction, SFTSection, SupervisedSection


class SamplingSection(RolloutSection):
    """How the newest model is sampled: `num_generations` replies a prompt, of which the best one is kept."""

    num_generations: int = Field(10, ge=2)
    """Replies a prompt, of which the best one is kept."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that is drawn from."""

    def rules(self) -> list[tuple[str, str]]:
        if self.engine != "vllm_server":
            return super().rules()
        sentence = "'vllm_server' samples beside a training, and here none runs meanwhile; use vllm"
        return [*super().rules(), ("engine", sentence)]


class RejectionSection(Rewarded, SupervisedSection):
    """`num_rounds` times: sample replies to `data` from the newest model, keep each prompt's best, finetune on those.

    Every round starts from the model of the round before, the first from `init_from` (default sft).

    The keys of a supervised stage are those of each round's finetuning; `data` and `eval_data` are prompts, and loss is
    on the sampled reply alone. `eval_data` is answered greedily before the first round and after each.
    """

    lengths: ClassVar[tuple[str, ...]] = ("num_rounds",)
    stopped_by: ClassVar[str] = "score_greedy"
    most_epochs: ClassVar[float] = SFTSection.most_epochs
    why_most: ClassVar[str] = SFTSection.why_most
    counts_epochs: ClassVar[bool] = False

    rollout: SamplingSection = SamplingSection()
    """How the newest model is sampled."""
    evaluation: EvaluationSection = EvaluationSection()
    """How held-out prompts are answered before the first round and after each."""
    num_rounds: Positive = 1
    """Rounds of sampling, choosing and finetuning."""
    threshold: float | None = None
    """A prompt whose best reply scores less is left out; in the reward's unit."""
    keep_earlier: bool = True
    """Train on a prompt's best reply of this and all earlier rounds, not of this one alone: Llama 2 saw skills
    forgotten without it."""
    earlier_from: Annotated[tuple[LocalPath, ...], Listed] = ()
    """Folders of finished rejection stages whose samples are chosen from too, scored anew by this one's reward;
    `rounds` name those of the rounds before."""
    holdout: Share = 0.0
    """Of no use here: name held-out prompts in `eval_data`."""
    loss_reduction: LossReduction = "token_mean"
    """As in sft."""
    packing: bool = False
    """As in sft."""
    group_by_length: bool = False
    """As in sft."""

    def rules(self) -> list[tuple[str, str]]:
        broken = [*super().rules(), *self.reward_rules()]
        if self.rollout.max_length > self.max_length:
            sentence = (
                f"{self.max_length} is less than rollout.max_prompt_length + rollout.max_completion_length "
                f"({self.rollout.max_length}): kept replies would be too long to train on; raise it or lower those"
            )
            broken.append(("max_length", sentence))
        if self.earlier_from and not self.keep_earlier:
            broken.append(("earlier_from", "names samples that keep_earlier: false leaves out; remove one of the two"))
        if self.mixture is not None:
            sentence = "every round replies to all of the prompts, once each; give the sources of data a weight"
            broken.append(("mixture", sentence))
        if self.holdout:
            broken.append(("holdout", "prompts are not held out by a share here; name them in eval_data"))
        if self.eval_steps is not None:
            sentence = "held-out prompts have no reply to measure a loss on, they are answered after each round; remove"
            broken.append(("eval_steps", f"{sentence} the key"))
        if self.packing and self.group_by_length:
            broken.append(("group_by_length", "packed rows are of like length already; use it or packing, not both"))
        return broken

    def stopping_rules(self) -> list[tuple[str, str]]:
        if not self.eval_data:
            return [("early_stopping", "needs held-out prompts, which are answered after each round: name eval_data")]
        if self.num_rounds <= self.early_stopping.patience:
            sentence = f"{self.early_stopping.patience} rounds are never waited for with num_rounds {self.num_rounds}"
            return [("early_stopping.patience", f"{sentence}; allow more rounds, or lower it")]
        return []

    def described(self) -> str:
        rounds = f"{self.num_rounds} round{'s' if self.num_rounds > 1 else ''}"
        least = "" if self.threshold is None else f" of a score of at least {self.threshold:g}"
        kept = " (or of an earlier round)" if self.keep_earlier and self.num_rounds > 1 else ""
        return (
            f"rejection: {rounds}; each samples {self.rollout.num_generations} replies a prompt from the newest model "
            f"and finetunes it for {self.length} on the best of them{kept}{least}; {self.rollout.sampler}"
        )

    def finetuning(self, demonstrations: str) -> SFTSection:
        """The sft section of a round that trains on the file `demonstrations`."""
        shared = {name: getattr(self, name) for name in SupervisedSection.model_fields}
        shared |= {name: getattr(self, name) for name in ("loss_reduction", "packing", "group_by_length")}
        shared |= {"data": (Source(path=demonstrations, format="messages"),), "early_stopping": None}
        shared |= {"cleaning": None, "selection": None}
        return SFTSection(**shared | {"eval_data": (), "holdout": 0.0, "mask": "last_turn_only"})
