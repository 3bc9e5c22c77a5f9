"""The `ppo` section. Defaults: the Qwen report where it speaks, else the marked choice of docs/stages.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from align.recipe.cleaning_section import CleaningSection
from align.recipe.errors import did_you_mean
from align.recipe.estimators import ESTIMATORS, Estimator
from align.recipe.fields import OptimSection, Source
from align.recipe.mixture_section import MixtureSection, mixture_rules
from align.recipe.reward_section import (
    JudgeOnly,
    OnRewardError,
    Parts,
    Rewarded,
    RewardPart,
    apart_rules,
    list_rules,
    plain_parts,
)
from align.recipe.rollout_section import EvaluationSection, PPORolloutSection
from align.recipe.section import Count, LocalPath, Positive, Section, Share, StageSection
from align.recipe.selection_section import SelectionSection


def _coefficient(value: Any) -> float | str:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        shown = f"'{value}'" if isinstance(value, str) else value
        raise ValueError(f"must be a number of at least 0, or 'auto', not {shown}")
    return float(value)


def _shared(value: Any) -> str | bool:
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError(f"must be 'auto', true or false, not {value!r}")


def _estimator(value: Any) -> str:
    if isinstance(value, str) and value in ESTIMATORS:
        return value
    near = did_you_mean(value, ESTIMATORS) if isinstance(value, str) else None
    hint = f"did you mean '{near}'?" if near else "your own is known only in the program that registers it"
    raise ValueError(f"must be {', '.join(ESTIMATORS)} or what a program registers, not {value!r}; {hint}")


VLLM_ENGINES = ("vllm", "vllm_server")
Offloaded = Literal["reference", "reward", "optimizer"]
Shared = Annotated[Literal["auto"] | bool, PlainValidator(_shared)]
Coefficient = Annotated[float | Literal["auto"], PlainValidator(_coefficient)]
Advantage = Annotated[str, PlainValidator(_estimator)]
ROWS_AT_ONCE, TOKENS_AT_ONCE = 4, 3072  # replies of full length, and tokens at least, where a recipe does not say
OF_THE_CRITIC = ("critic_warmup_steps", "lam", "critic_lam", "cliprange_value", "vf_coef")


class PolicyOptim(OptimSection):
    learning_rate: float = Field(1e-6, gt=0)
    """Of the policy."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """As above."""


class CriticOptim(OptimSection):
    learning_rate: float = Field(5e-6, gt=0)
    """Of the critic."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """As above."""


class PPOEvaluationSection(EvaluationSection):
    """The same, during training too."""

    every_steps: Positive | None = None
    """Iterations between two evaluations during training, of one sampled and one greedy reply a prompt."""
    save_best: bool = False
    """Keep the policy of the evaluation with the highest `eval/score`, the first and the last one included, in
    `best/model`; of equal ones the earliest."""

    def rules(self) -> list[tuple[str, str]]:
        if self.save_best and self.every_steps is None:
            sentence = "there is no choice without evaluations in between: set every_steps too"
            return [*super().rules(), ("save_best", sentence)]
        return super().rules()


class GuardSection(Section):
    """When a run stops by itself, with its state saved, or warns. `null` or false switches a guard off."""

    non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run, or (`skip`) its optimizer step is left out and counted."""
    max_kl: float | None = Field(None, gt=0)
    """Nats a reply, the mean over an iteration, above which the run stops."""
    min_entropy: float | None = Field(None, gt=0)
    """Nats a token, the mean over an iteration, below which the run stops."""
    warn_equal_rewards: bool = True
    """Warn where all replies of an iteration have the same reward."""


class PPOConfig(Section):
    """What `PPOTrainer` is told, in a recipe or in Python.

    One iteration: `rollout_batch_size` prompts over all ranks give `rollout_batch_size * num_generations` responses,
    which are trained on for `num_ppo_epochs` passes of `num_mini_batches` optimizer steps each.

    `advantage`: `gae` learns with a critic; the others load none and refuse its keys. `rloo`, `grpo` (divided by the
    deviation of each prompt's rewards) and `dr_grpo` (not divided) compare the replies to one prompt, `reinforce_pp`
    whitens the rewards from each token on over the whole batch. The KL of `kl_in: reward` is part of what they compare;
    grpo has it by default in the loss, as its paper has it, which has `loss_aggregation: sequence` too.
    `whiten_advantages` is by default true for gae and reinforce_pp, false for the others.
    """

    gone: ClassVar[dict[str, str]] = {
        "old_logprobs": "it is gone, a pass that is not needed is found by itself: leave it out",
        "kl_straight_through": "it is gone, the gradient is always that of the reply's whole KL: leave it out "
        "(examples/ppo_published_variants.py has the estimate's own)",
        "missing_eos": "it is gone, missing_eos_penalty is always subtracted: leave it out, with missing_eos_penalty 0 "
        "for 'none' (examples/ppo_published_variants.py replaces the score)",
        "clip_value_in_warmup": "it is gone, values are always clipped: leave it out",
    }

    rollout: PPORolloutSection = PPORolloutSection()
    """How replies are sampled."""
    mixture: MixtureSection | None = None
    """What the prompts of every iteration take of each source or category of `data`; without the section all prompts
    come once before any comes again."""
    policy: PolicyOptim = PolicyOptim()
    """Optimizer of the policy."""
    critic: CriticOptim = CriticOptim()
    """Optimizer of the critic."""
    evaluation: PPOEvaluationSection = PPOEvaluationSection()
    """Evaluation on held-out prompts."""
    guards: GuardSection = GuardSection()
    """When a run stops by itself."""

    num_iterations: Positive
    """Iterations of sampling and training."""
    rollout_batch_size: Positive = 256
    """Prompts of an iteration, over all processes."""
    num_ppo_epochs: Positive = 1
    """Passes over the replies of an iteration."""
    num_mini_batches: Positive = 8
    """Optimizer steps of a pass."""
    micro_batch_size: Positive | None = None
    """Replies that a process holds at once, at most; by default as many as `micro_batch_tokens` has room for. Gradients
    depend on neither."""
    micro_batch_tokens: Positive | None = None
    """Tokens that a process computes at once, at most, a shared prompt once; a longer reply stands alone. By default
    room for four replies of full length and for 3,072 tokens at least, or no bound where `micro_batch_size` is set."""
    critic_warmup_steps: Count = 50
    """Optimizer steps in which the critic alone learns; 0 for an `advantage` without a critic."""

    policy_support: Literal["full", "nucleus"] = "full"
    """Distribution that the ratio is over: the whole vocabulary, or the ids that the sampler could draw."""
    importance_sampling_correction: Literal["none", "token", "sequence"] = "none"
    """Weigh the policy's loss by min(trainer / engine, cap) of a token or a sequence, for engines of another precision
    or with older weights."""
    importance_sampling_cap: float = Field(2.0, ge=1)
    """The cap."""

    kl_coef: float = Field(0.04, ge=0)
    """Reward taken off for a nat of KL to the reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimators of the KL."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Whether the KL is part of the reward or of the loss; by default of the loss with grpo."""
    kl_target: float | None = Field(None, gt=0)
    """Nats a reply that an adaptive coefficient steers to."""
    kl_horizon: Positive = 10_000
    """Replies over which it does."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken off the score of a reply without an end; 0 is none."""
    mask_truncated_completions: bool = False
    """Replies without an end teach nothing: no loss, no whitening, no running statistics."""
    on_reward_error: OnRewardError = "stop"
    """A reward that fails stops the run, is asked again (three calls in all), or (`mask`) the replies it fails on teach
    nothing, up to a quarter of an iteration's."""
    length_penalty: float = Field(0.0, ge=0)
    """Taken off the score for each token after the free ones."""
    length_penalty_free: Count = 0
    """The free ones."""
    normalize_reward: Literal["none", "running_mean", "running_std", "running_mean_std"] = "running_mean"
    """Whether the running mean is taken off the score, and whether it is divided by the running deviation."""
    reward_clip_range: float | None = Field(10.0, gt=0)
    """Bound of the normalised score, both ways."""

    advantage: Advantage = "gae"
    """Estimator: `gae`, `rloo`, `grpo`, `dr_grpo`, `reinforce_pp`, or what a program registers; [the
    formulas](stages.md#ppo)."""
    gamma: Share = 1.0
    """Discount a token."""
    lam: Share = 0.95
    """λ of GAE."""
    critic_lam: Share | None = None
    """λ of the critic's targets; by default `lam`."""
    whiten_advantages: bool = True
    """Bring advantages to mean 0 and deviation 1 over the global batch; by default where the estimator does (gae,
    reinforce_pp)."""
    loss_aggregation: Literal["token", "sequence"] = "token"
    """Mean over the minibatch's tokens, or over replies of the mean over theirs."""
    cliprange: float = Field(0.2, gt=0)
    """How far the ratio may move from 1."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the ratio for tokens of negative advantage."""
    entropy_coef: float = Field(0.0, ge=0)
    """Factor of the entropy's bonus."""
    target_kl: float | None = Field(None, gt=0)
    """Nats a token between old and new policy at which an iteration's update ends early."""
    cliprange_value: float | None = Field(0.15, gt=0)
    """How far values may move from the old ones, in units of the normalised reward; null is no clip."""
    vf_coef: float = Field(1.0, gt=0)
    """Factor of the value loss."""

    ptx_coef: Coefficient = 0.0
    """Factor of the pretraining loss in the policy's step, at least 0; `auto` is led to `ptx_grad_norm_ratio`."""
    ptx_grad_norm_ratio: float = Field(0.5, gt=0)
    """Ratio of the two gradients' norms that `auto` keeps."""
    ptx_max_z_coef: float = Field(0.0, ge=0)
    """Factor of the max-z loss in the pretraining loss (Baichuan 2: 2e-4): the square of the largest logit, a token."""
    ptx_ratio: Count = 8
    """Rows of pretraining documents a reply."""
    ptx_max_length: Positive = 2048
    """Tokens of such a row."""
    ptx_micro_batch_size: Positive | None = None
    """Such rows that a process holds at once; by default as many as have no more logits than a micro-batch of
    replies."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an average of the policy's weights, written to `ema/`; without it none."""
    offload: tuple[Offloaded, ...] = ()
    """What waits in the host's memory while it is idle: the reference, the reward models, the optimizers' moments
    (nothing on a CPU; not with FSDP2)."""

    logging_steps: Positive = 1
    """Iterations between two rows of metrics.jsonl."""
    save_steps: Positive | None = None
    """Iterations between two checkpoints; without it none on the way."""
    save_total_limit: Positive = 2
    """Checkpoints that are kept."""
    log_samples: Count = 8
    """Replies of an iteration that samples.jsonl shows."""

    def model_post_init(self, context: Any) -> None:
        """Defaults that follow from other keys stand in the resolved recipe as it has them."""
        defaults: dict[str, Any] = {"whiten_advantages": self.estimator.whitens, "kl_in": self.estimator.kl_in}
        defaults |= {} if self.estimator.critic else {"critic_warmup_steps": 0}
        defaults |= {"micro_batch_size": 1} if self.rollout.exact else {}
        self.__dict__.update({key: value for key, value in defaults.items() if key not in self.model_fields_set})

    @property
    def estimator(self) -> Estimator:
        """What is known of the advantage estimator."""
        return ESTIMATORS[self.advantage]

    @property
    def trained_roles(self) -> tuple[str, ...]:
        """The models that are trained; each is the name of its optimizer's section."""
        return ("policy", "critic") if self.estimator.critic else ("policy",)

    @property
    def warmup_iterations(self) -> int:
        """Iterations in which the critic alone learns; the one after them may begin with steps of the critic alone."""
        return self.critic_warmup_steps // (self.num_ppo_epochs * self.num_mini_batches)

    @property
    def uses_ptx(self) -> bool:
        """Whether pretraining documents are mixed in."""
        return self.ptx_coef != 0 and self.ptx_ratio > 0

    @property
    def asks_policy_late(self) -> bool:
        """Whether nothing but an iteration's only optimizer step asks what the policy says of its replies, so that one
        pass serves for both: no KL in the reward, no guard of KL or entropy, and no proof of `rollout.exact`."""
        one_step = self.num_ppo_epochs * self.num_mini_batches == 1
        penalized = self.kl_in == "reward" and self.kl_coef > 0
        guarded = self.guards.max_kl is not None or self.guards.min_entropy is not None
        return one_step and not penalized and not guarded and not self.rollout.exact

    @property
    def tokens_at_once(self) -> int | None:
        """`micro_batch_tokens`, or its default; None: no bound."""
        default = None if self.micro_batch_size else max(TOKENS_AT_ONCE, ROWS_AT_ONCE * self.rollout.max_length)
        return self.micro_batch_tokens or default

    @property
    def rows_at_once(self) -> int:
        """Replies of full length that pass together, at most."""
        tokens = self.tokens_at_once
        by_tokens = self.micro_batch_size if tokens is None else max(1, tokens // self.rollout.max_length)
        return min(by_tokens, self.micro_batch_size or by_tokens)

    @property
    def ptx_rows_at_once(self) -> int:
        """`ptx_micro_batch_size`, or as many rows as have no more logits than a micro-batch of replies."""
        rows = self.rows_at_once
        by_logits = rows * self.rollout.max_completion_length // self.ptx_max_length
        return self.ptx_micro_batch_size or max(1, min(rows, by_logits))

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        steps = self.num_ppo_epochs * self.num_mini_batches
        if self.estimator.critic and self.critic_warmup_steps >= self.num_iterations * steps:
            sentence = (
                f"{self.critic_warmup_steps} leaves the policy none of the {self.num_iterations * steps} optimizer "
                f"steps (num_iterations {self.num_iterations} x num_ppo_epochs {self.num_ppo_epochs} x "
                f"num_mini_batches {self.num_mini_batches}); use fewer, or more iterations"
            )
            broken.append(("critic_warmup_steps", sentence))
        if self.policy_support == "nucleus" and self.rollout.top_p == 1 and self.rollout.top_k == 0:
            sentence = "'nucleus' is the whole vocabulary with top_p 1 and top_k 0; use full, which costs less"
            broken.append(("policy_support", sentence))
        if self.mask_truncated_completions and self.rollout.min_completion_length >= self.rollout.max_completion_length:
            sentence = "takes every reply out: none can end with rollout.min_completion_length as long as the maximum"
            broken.append(("mask_truncated_completions", sentence))
        if self.kl_target is not None and self.kl_coef == 0:
            broken.append(("kl_coef", "0 cannot be adapted, since kl_target multiplies it; start above 0"))
        if self.ptx_coef != 0 and self.ptx_ratio == 0:
            sentence = "0 gives a step no pretraining rows although ptx_coef is above 0; set one of them to match"
            broken.append(("ptx_ratio", sentence))
        if self.ptx_max_z_coef and not self.uses_ptx:
            sentence = "is a part of the pretraining loss, but ptx_coef is 0; set that above 0, or remove the key"
            broken.append(("ptx_max_z_coef", sentence))
        return broken + self._estimator_rules() + self._offload_rules() + self._rollout_rules()

    def _estimator_rules(self) -> list[tuple[str, str]]:
        """Keys that the estimator has no use for, and what it cannot do without."""
        broken, name, fields = [], self.advantage, PPOConfig.model_fields
        if not self.estimator.critic:
            plain = {key: fields[key].default for key in OF_THE_CRITIC} | {"critic_warmup_steps": 0}
            keys = [key for key, default in plain.items() if getattr(self, key) != default]
            keys += [f"critic.{key}" for key, value in self.critic if value != getattr(fields["critic"].default, key)]
            sentence = f"is the critic's, and advantage={name} has none; remove the key, or use advantage=gae"
            broken += [(key, sentence) for key in keys]
        if not self.estimator.discounts and self.gamma != fields["gamma"].default:
            sentence = f"discounts nothing, since for advantage={name} a reply is one action; remove the key"
            broken.append(("gamma", sentence))
        if self.estimator.groups and self.rollout.num_generations < 2:
            sentence = (
                f"1 leaves a reply none to be compared with: advantage={name} needs at least 2 to a prompt; raise it, "
                "or use advantage=reinforce_pp"
            )
            broken.append(("rollout.num_generations", sentence))
        return broken

    def _offload_rules(self) -> list[tuple[str, str]]:
        broken = []
        if len(set(self.offload)) < len(self.offload):
            broken.append(("offload", "names a part twice; name each once"))
        paged = [name for name in self.trained_roles if getattr(self, name).optimizer.startswith("paged")]
        if "optimizer" in self.offload and paged:
            sentence = f"moments of {paged[0]}.optimizer={getattr(self, paged[0]).optimizer} give way by themselves"
            broken.append(("offload", f"{sentence}; leave optimizer out, or use an optimizer that is not paged"))
        return broken

    @property
    def beyond_vllm(self) -> bool:
        """Whether the importance correction needs what vLLM cannot tell: at a temperature, probabilities before
        truncation."""
        rollout = self.rollout
        return self.importance_sampling_correction != "none" and rollout.temperature != 1 and bool(rollout.truncates)

    def _rollout_rules(self) -> list[tuple[str, str]]:
        """What the way replies are sampled does not go together with."""
        broken, rollout = [], self.rollout
        if self.beyond_vllm and rollout.engine in VLLM_ENGINES:
            sentence = (
                f"vLLM does not tell the probability before truncation at temperature {rollout.temperature:g} with "
                f"rollout.{' and '.join(rollout.truncates)} set; use rollout.temperature=1, or top_p=1, top_k=0 and "
                "min_completion_length=0, or rollout.engine=hf"
            )
            broken.append(("importance_sampling_correction", sentence))
        if self.policy_support == "nucleus" and rollout.engine == "vllm_server":
            sentence = "a vLLM server does not say which ids could be drawn; use full, or rollout.engine=hf"
            broken.append(("policy_support", sentence))
        if rollout.exact and self.policy_support == "nucleus":
            broken.append(("rollout.exact", "is for the ratio over the whole vocabulary; use policy_support=full"))
        if rollout.exact and self.micro_batch_size != 1:
            sentence = "computes each reply alone, as it was drawn: leave micro_batch_size out, or set it to 1"
            broken.append(("rollout.exact", sentence))
        if rollout.overlap and self.importance_sampling_correction == "none":
            sentence = (
                "trains on replies of older weights, which must be corrected for; use "
                "importance_sampling_correction=token (or sequence)"
            )
            broken.append(("rollout.overlap", sentence))
        return broken


class PPOSection(Rewarded, PPOConfig, StageSection):
    """The ppo stage of a recipe: the configuration, the data, the rewards, and what the models start from."""

    unit: ClassVar[str] = "responses"
    lengths: ClassVar[tuple[str, ...]] = ("num_iterations",)
    stopped_by: ClassVar[str] = "eval/score"

    data: tuple[Source, ...] = Field(min_length=1)
    """Prompts."""
    cleaning: CleaningSection | None = None
    """Steps that `data` goes through first; without the section none."""
    selection: SelectionSection | None = None
    """Which of the prompts are learnt from; without the section all."""
    eval_data: tuple[Source, ...] = ()
    """Held-out prompts."""
    ptx_data: tuple[Source, ...] = ()
    """Pretraining documents of `ptx_coef`."""
    gold_reward: Parts = ()
    """A second reward, of parts as `reward`: it scores the replies to held-out prompts alone, decides where there is no
    `judge`, and nothing is trained on it, stopped by it or chosen by it."""
    init_from: LocalPath | None = None
    """What the policy starts from: a stage, a folder or a hub id; by default rejection, else sft."""
    critic_from: LocalPath | None = None
    """What the critic starts from: a stage, a folder or a hub id; by default the first reward model, else the
    policy."""
    critic_warmup_from: LocalPath | None = None
    """Replies that iterations of the critic alone learn from, in place of sampling them: a file of replies, the folder
    of a run's ppo or rejection stage or of `align collect`, or `rejection`, the recipe's own stage;
    [which are fit](stages.md#warm-up-on-stored-replies)."""
    shared_backbone: Shared = "auto"
    """Keep policy, reference, critic and reward model as adapters of one frozen base; `auto` does so where
    `model.adapter` is not none."""

    def judges(self) -> Iterator[tuple[str, RewardPart | JudgeOnly]]:
        yield from super().judges()
        yield from plain_parts(self.gold_reward, "gold_reward")

    def optimizers(self) -> dict[str, OptimSection]:
        return {role: getattr(self, role) for role in self.trained_roles}

    def described(self) -> str:
        responses = self.rollout_batch_size * self.rollout.num_generations
        steps = self.num_ppo_epochs * self.num_mini_batches
        text = (
            f"ppo: {self.num_iterations} iterations of {self.rollout_batch_size} prompts x "
            f"{self.rollout.num_generations} generations = {responses} responses, {steps} optimizer steps each; "
        )
        if self.estimator.critic:
            text += f"the policy waits for the first {self.critic_warmup_steps} of {self.num_iterations * steps} steps"
            if self.critic_warmup_from is not None:
                text += f", in {self.warmup_iterations} iterations over stored replies ({self.critic_warmup_from})"
        else:
            text += f"{self.advantage} advantages, without a critic"
        rows = self.ptx_ratio * (responses // self.num_mini_batches) if self.uses_ptx else 0
        text += f"; {rows} pretraining rows a step" if rows else ""
        text += f"; at most {self.tokens_at_once:,} tokens computed at once" if self.tokens_at_once else ""
        text += "" if self.mixture is None else f"; {self.mixture.described()}"
        return f"{text}; {self.rollout.sampler}"

    def gold_rules(self) -> list[tuple[str, str]]:
        """Broken rules of `gold_reward`."""
        broken = list_rules(self.gold_reward, "gold_reward")
        if self.gold_reward and not self.eval_data:
            broken.append(("gold_reward", "judges replies to held-out prompts alone: name some in eval_data"))
        return [*broken, *apart_rules(plain_parts(self.gold_reward, "gold_reward"))]

    def rules(self) -> list[tuple[str, str]]:
        broken = [*PPOConfig.rules(self), *self.reward_rules(), *self.gold_rules(), *mixture_rules(self)]
        if self.critic_from is not None and not self.estimator.critic:
            sentence = f"names a critic, and advantage={self.advantage} has none; remove the key, or use advantage=gae"
            broken.append(("critic_from", sentence))
        if self.critic_warmup_from is not None and not self.warmup_iterations:
            steps = self.num_ppo_epochs * self.num_mini_batches
            sentence = (
                f"names replies for iterations of the critic alone, and there is none: critic_warmup_steps is "
                f"{self.critic_warmup_steps}, an iteration has {steps}; raise that, or remove the key"
            )
            broken.append(("critic_warmup_from", sentence))
        if self.early_stopping is not None and (self.evaluation.every_steps is None or not self.eval_data):
            sentence = "needs evaluations on the way: set evaluation.every_steps, and name prompts in eval_data"
            broken.append(("early_stopping", sentence))
        if self.early_stopping is not None and (self.early_stopping.metric or "").startswith("eval/win_rate"):
            sentence = "the judge only looks on: what a run is stopped by says no more what it is worth; use eval/score"
            broken.append(("early_stopping.metric", sentence))
        if self.evaluation.save_best and not self.eval_data:
            broken.append(("evaluation.save_best", "needs held-out prompts to choose by: name some in eval_data"))
        if self.rollout.overlap and self.rollout.engine != "vllm_server":
            does = f"'{self.rollout.engine}' {'may' if self.rollout.engine == 'auto' else 'does'} not"
            sentence = f"needs an engine that samples beside the training, which {does}; use engine=vllm_server"
            broken.append(("rollout.overlap", f"{sentence}, or overlap=0"))
        if self.ptx_coef != 0 and not self.ptx_data:
            broken.append(
                ("ptx_data", "is empty although ptx_coef is above 0: name pretraining documents, or set ptx_coef to 0")
            )
        return broken
