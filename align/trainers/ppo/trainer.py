"""PPO with a critic, as the Qwen report (3.2.2) and InstructGPT (Ouyang et al. 2022) did it, or with advantages that
need none (`advantages.py`); an own loop on accelerate.

One iteration: `collect` replies, `score` them, `make_experience` (old and reference log-probabilities and old values by
the training forward, `penalize_scores`, `normalize_scores`, `shape_rewards`, `compute_advantages`), `update`. Each is a
seam to override: a method of `PPOTrainer`, which hands it to the parts as a plain function.

The trainer builds the parts and owns nothing that changes. `Rollout` samples, `WeightSync` brings the engine the
weights, `ModelPasses` asks the models about the replies, `Learner` makes gradients and steps, `Evaluation` measures,
and `Checkpoints` saves, restores and rolls back what the parts own.

Decisions, and departures from the named papers:
- Old log-probabilities come from passes over the very micro-batches of the first epoch, never from the sampler, so the
  first minibatch's ratio is exactly 1. In one process the last of these passes, over what is learnt from first, keeps
  its graph, and the update takes it up unless a weight was written to meanwhile. Where an iteration has one optimizer
  step, and neither the reward nor a guard nor a replaced seam asks what the policy says before it (KL in the loss, or
  none), there are no such passes: the update's own are both, to the bit, and the log's figures are made from them.
- Log-probabilities are divided by the sampling temperature and normalised over the whole vocabulary, old, new and
  reference alike: with top-p < 1 the replies come from a narrower distribution than the one that is scored. Tokens
  outside the nucleus are never drawn, so nothing pushes their probability but the softmax, and the KL is then a
  penalty, not a measurement; `kept_mass` says how much is left out. `policy_support: nucleus` takes the ratio over what
  the sampler could draw, which is the distribution it drew from; KL and entropy stay whole.
- `importance_sampling_correction` weights the policy's loss by min(trainer / engine, cap) where the engine computes in
  another precision or with older weights (`rollout.overlap`: `rollout.py`); both over the full distribution, so it
  does not undo top-p.
- The score stands on the last real token of the reply, the KL on each token (`kl_in: loss`: in the loss). A reply ends
  at `<|im_end|>`; one that was cut, or ended with `<|endoftext|>`, has `missing_eos_penalty` subtracted from its score
  (`ModelReward` reads that score at an `<|im_end|>` it appends). Then the running mean counts the whole global batch
  in, is subtracted, and the result is clipped. `mask_truncated_completions` takes replies without an
  end out of everything that is learnt: losses, whitening, running statistics; `on_reward_error: mask` those that the
  reward fails on. No value follows the last token.
- Losses are sums divided by the token count (or, aggregated by sequence, the reply count) of the minibatch over all
  ranks, so gradients do not depend on micro-batches, padding or ranks. Minibatches are real optimizer steps, reshuffled
  every epoch. With whitened advantages a KL in the loss weighs `kl_coef` times their deviation, one in the reward does
  not.
- Critic warm-up is exactly `critic_warmup_steps` optimizer steps in which the policy is not touched: no gradient, no
  ptx, no weight decay, no momentum, no schedule. Their rollouts are not used again in the run, and may come from
  another one (`warmup.py`). When it ends inside an iteration, the rest of that iteration updates both. "2 responses" of
  the report are two independent trajectories.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from align import functional
from align.data.fingerprint import fingerprint
from align.data.mixture import MixedOrder
from align.data.prompts import MixedPromptSampler, PromptSampler
from align.models.save import dress, save_model
from align.recipe.ppo_section import PPOConfig
from align.runs.errors import SavedError, TrainingError
from align.runs.proof import reset_process_state
from align.runs.seeding import derive
from align.runtime.files import atomic_dir
from align.trainers import accepted, sharding
from align.trainers.engines import check_overlap, training_engine
from align.trainers.offload import Offload, reward_models
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.advantages import ESTIMATORS
from align.trainers.ppo.checkpoint import Checkpoints
from align.trainers.ppo.controllers import KLController, PtxController
from align.trainers.ppo.evaluation import Evaluation
from align.trainers.ppo.exact import AlonePass, check_exact, reply_room, require_exact
from align.trainers.ppo.experience import ModelPasses, counted_replies, running_stats, sampler_logps, support_of
from align.trainers.ppo.forward import shares_prompts, silence_dropout
from align.trainers.ppo.guards import (
    NotFiniteError,
    enough_memory,
    reason_to_stop,
    require_judged,
    together,
    warn_of,
)
from align.trainers.ppo.learner import Learner, Minibatch, WeightAverage
from align.trainers.ppo.loop import IterationLoop, loop_arguments
from align.trainers.ppo.metrics import (
    Stopwatch,
    UpdateMetrics,
    part_metrics,
    peak_memory,
    policy_metrics,
    rollout_metrics,
    sample_rows,
    staleness,
)
from align.trainers.ppo.minibatches import Room, check_split, plan_minibatches, shuffled
from align.trainers.ppo.opponent import Opponent
from align.trainers.ppo.ptx import PtxStream, ptx_loss_sum
from align.trainers.ppo.rollout import Rollout
from align.trainers.ppo.types import Experience, Samples, Scores, TokenBatch, reply_groups
from align.trainers.ppo.warmup import WarmupRollouts
from align.trainers.ppo.weight_sync import WeightSync
from align.trainers.sharding import make_accelerator
from data_formats.chat_format import chat_format
from data_formats.records import Prompt
from reward.checkpointing import is_checkpointing
from reward.judges.protocol import Judge
from reward.protocol import Reward, same_tokens
from rollouts.protocol import Engine, SamplingParams

Result = TypeVar("Result")


class PPOTrainer(IterationLoop):
    """Trains `policy` to please `reward`, staying near `reference`.

    Args:
        policy: a causal LM; `critic`: gives values_BT for (input_ids, attention_mask), None where `config.advantage`
            needs none. Both are trained in place, with their dropout set to 0. Two modules that share nothing, or two
            roles of one `SharedBackbone`.
        reward: scores replies; never trained. A function becomes a `FunctionReward`; `gold` likewise.
        tokenizer: of the policy; carries how it speaks (`align.load_tokenizer`), else ChatML.
        config: a `PPOConfig`, or the recipe's ppo section, whose data and origins are not read here.
        prompts: what replies are sampled to; at least `rollout_batch_size`. Records, texts, or rows as files have them
            (`{"prompt": …}`, `{"messages": […]}`); `eval_prompts` likewise.
        reference: frozen; default a copy of `policy` as it is now (of a shared backbone, give its role).
        engine: samples replies; default the one that `config.rollout.engine` names.
        ptx_blocks: token ids of pretraining blocks, needed when `ptx_coef` > 0.
        warmup: what iterations of the critic alone learn from, or where their replies are kept; default they are
            sampled, and not kept.
        eval_prompts: for `evaluate()`.
        gold: a second reward, asked in `evaluate()` alone and used for nothing but the log.
        judge: compares the replies of `evaluate()` with those of the policy as it is now: `eval/win_rate`, by which
            nothing is stopped or chosen. A function `(prompts, first, second, **columns)` becomes a `FunctionJudge`, a
            reward a `RewardJudge`; without one `gold` decides, where there is one.
        callbacks: transformers callbacks.

    Raises:
        BatchSplitError: the batch cannot be cut into equal minibatches and shares.
        TypeError: an argument that is something else, a path for instance; says what to do.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module | None,
        reward: Reward,
        tokenizer: Any,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        *,
        output_dir: str | Path,
        reference: nn.Module | None = None,
        engine: Engine | None = None,
        ptx_blocks: Sequence[Sequence[int]] = (),
        warmup: WarmupRollouts | None = None,
        eval_prompts: Sequence[Prompt] = (),
        gold: Reward | None = None,
        judge: Judge | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
        seed: int = 0,
    ):
        accepted.require_config(config, "config")
        accepted.require_roles(policy, critic, reference, config.advantage)
        accepted.require_tokenizer(tokenizer, "tokenizer")
        accepted.require_vocabulary(tokenizer, policy=policy, critic=critic, reference=reference)
        accepted.require_engine(engine, "engine")
        reward = accepted.as_reward(reward, "reward")
        self.config, self.reward, self.tokenizer, self.seed = config, reward, tokenizer, seed
        self.gold = None if gold is None else accepted.as_reward(gold, "gold")
        self.judge = None if judge is None else accepted.as_judge(judge, "judge")
        self.prompts = accepted.as_prompts(prompts, "prompts")
        self.eval_prompts, self.output_dir = accepted.as_prompts(eval_prompts, "eval_prompts"), Path(output_dir)
        self.accelerator = accelerator or make_accelerator()
        reset_process_state(self.accelerator)
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        check_split(config.rollout_batch_size, config.rollout.num_generations, config.num_mini_batches, self.world_size)
        self.responses = config.rollout_batch_size * config.rollout.num_generations
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.stop_ids = chat_format(tokenizer).stop_ids
        self.end_id = self.stop_ids[0]
        self.reward_takes_ids = same_tokens(reward, tokenizer)
        self.offload = Offload(config.offload, self.accelerator)
        self.offload.rest("reward", *reward_models(reward, self.gold, getattr(self.judge, "reward", None)))
        self._build_models(policy, critic, reference)
        self.estimator = ESTIMATORS[config.advantage](config)
        self.reward_stats = running_stats(config.normalize_reward)
        self.kl = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.ptx_coef = PtxController(config.ptx_coef, config.ptx_grad_norm_ratio)
        self.sampler, self.warmup = self._make_sampler(derive(seed, "prompts")), warmup or WarmupRollouts()
        self.ptx = self._make_ptx(ptx_blocks)
        sets = {"data": self.prompts, "eval_data": self.eval_prompts, "ptx_data": list(ptx_blocks)} | self.warmup.rows()
        self.data = {f"ppo.{name}": fingerprint(rows) for name, rows in sets.items()}
        self.args = loop_arguments(config, self.output_dir, bool(eval_prompts), seed, self.accelerator)
        alone = AlonePass(self.policy, config, self.pad_id)
        where = {"accelerator": self.accelerator, "output_dir": self.output_dir, "seed": derive(seed, "engine")}
        self.engine = engine or training_engine(config, self.policy.raw, self.pad_id, alone, **where)
        check_overlap(config, self.engine, self.world_size)
        check_exact(config, self.engine, self.accelerator.is_fsdp2)
        self._build_parts()
        self._set_up_loop(callbacks, self.policy.raw, tokenizer, self.policy.optimizer, self.policy.schedule)

    def _build_models(self, policy: nn.Module, critic: nn.Module | None, reference: nn.Module | None) -> None:
        trained = [module for module in (policy, critic) if module is not None]
        for module in trained:  # now, so that the configs in all checkpoints are those in the models
            dress(module, self.tokenizer)
        reference = copy.deepcopy(policy) if reference is None else reference
        for module in (*trained, reference):
            silence_dropout(module)
            module.train(module is not reference and is_checkpointing(module))
        config, decay = self.config, self.config.ema_decay
        steps = config.num_iterations * config.num_ppo_epochs * config.num_mini_batches
        self.ema = None if decay is None else WeightAverage(policy, decay, self.accelerator)
        shared: dict[str, Any] = {"accelerator": self.accelerator, "offload": self.offload}
        policy_steps = steps - config.critic_warmup_steps
        self.policy = TrainedModel(policy, config.policy, total_steps=policy_steps, name="ppo.policy", **shared)
        self.critic = None
        if critic is not None:
            self.critic = TrainedModel(critic, config.critic, total_steps=steps, name="ppo.critic", **shared)
        reference.requires_grad_(False)
        self.reference, _ = sharding.prepare(self.accelerator, reference)
        models = [self.reference, *(model.raw for model in self._trained.values())]
        self._share_prompts = shares_prompts(*models)  # tried now, where all ranks are
        self.offload.rest("reference", self.reference)

    def _make_sampler(self, seed: int) -> PromptSampler | MixedPromptSampler:
        config = self.config
        if config.mixture is None:
            return PromptSampler(len(self.prompts), config.rollout_batch_size, seed)
        parts = [prompt.part for prompt in self.prompts]
        steps = {"rows_per_step": config.rollout_batch_size, "steps": config.num_iterations}
        return MixedPromptSampler(MixedOrder(config.mixture, parts, seed=seed, **steps))

    def _make_ptx(self, blocks: Sequence[Sequence[int]]) -> PtxStream | None:
        per_step = self.config.ptx_ratio * self.responses // self.config.num_mini_batches
        if not self.config.uses_ptx or per_step == 0:
            return None
        return PtxStream(blocks, per_step, self.config.ptx_rows_at_once, derive(self.seed, "ptx"), self.pad_id)

    def _build_parts(self) -> None:
        config, tokenizer, pad_id, accelerator = self.config, self.tokenizer, self.pad_id, self.accelerator
        policy, critic, reference, offload = self.policy, self.critic, self.reference, self.offload
        shared: dict[str, Any] = {"config": config, "tokenizer": tokenizer, "accelerator": accelerator}
        self.weight_sync = WeightSync(self.engine, policy, accelerator, tokenizer, pad_id)
        self.rollout = Rollout(
            self.engine,
            self.prompts,
            self.sampler,
            self.weight_sync,
            version=lambda: self.policy_version,
            end_id=self.end_id,
            **shared,
        )
        self.model_passes = ModelPasses(
            policy, critic, reference, config=config, offload=offload, accelerator=accelerator
        )
        self.learner = Learner(
            policy,
            critic,
            average=self.ema,
            ptx=self.ptx,
            ptx_coef=self.ptx_coef,
            config=config,
            accelerator=accelerator,
        )
        opponent = Opponent()
        self.evaluation = Evaluation(
            policy,
            reference,
            self.weight_sync,
            opponent,
            pad_id=pad_id,
            seed=self.seed,
            offload=offload,
            **shared,
        )
        parts = {
            "prompt_sampler": self.sampler,
            "warmup": self.warmup,
            "reward_stats": self.reward_stats,
            "kl": self.kl,
            "ptx": self.ptx,
            "ptx_coef": self.ptx_coef,
            "optimizer_steps": self.learner.steps,
            "policy_version": self.learner.policy_steps,
        }
        self.checkpoints = Checkpoints(
            self._trained,
            self.ema,
            {name: part for name, part in parts.items() if part is not None},
            {"ahead": self.rollout, "opening": opponent},
            seed=self.seed,
            data=self.data,
            output_dir=self.output_dir,
            checkpoint_dir=self.checkpoint_dir,
            config=config,
            accelerator=accelerator,
        )

    @property
    def _trained(self) -> dict[str, TrainedModel]:
        """Policy and, where there is one, critic, as checkpoints and the log call them."""
        return {"policy": self.policy} | ({} if self.critic is None else {"critic": self.critic})

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps made so far, those of the critic's warm-up too."""
        return self.learner.steps.value

    @property
    def policy_version(self) -> int:
        """Optimizer steps that moved the policy: the version of its weights."""
        return self.learner.policy_steps.value

    def step(self) -> dict[str, float]:
        """Collect, score, update; returns the iteration's metrics.

        Raises:
            TrainingError: an error of ours, with what is saved; any other exception comes as it is, with a note of it.
        """
        watch, version = Stopwatch(), self.policy_version
        with self.checkpoints.iteration(self.state, self.save_checkpoint) as attempt:
            with watch("rollout"):
                samples = self._stored_samples() if self._takes_stored else self._new_samples()
            with watch("score"):
                scores = self.together(enough_memory(self.config, "score")(lambda: self.score(samples)))
            with watch("experience"):
                samples, scores = self._over_ranks(samples, scores)
                self._keep_for_warmup(samples, scores)
                with enough_memory(self.config, "experience"):
                    make = partial(self._experience, late=True) if self._asks_policy_late else self.make_experience
                    experience, metrics = make(samples, scores.total_N)
                metrics |= part_metrics(scores.parts)
            self._heed_guards(metrics)
            attempt.updating = True
            with watch("update"), enough_memory(self.config, "update"):
                metrics |= self.update(experience)
            metrics |= self._late_metrics(samples, experience)
            if "kl/reply" in metrics and self.policy_version != version:  # after the update, which it may weigh
                self.kl.update(metrics["kl/reply"], len(samples))
            self._note_progress(samples, experience, scores)
            return metrics | self._costs(watch, experience)

    def _new_samples(self) -> Samples:
        return self.rollout.next(self.collect, self._later_sampling_params, self.together)

    def _stored_samples(self) -> Samples:
        rollout = self.config.rollout_batch_size, self.config.rollout.num_generations
        return self.warmup.next(*rollout, self.rank, self.world_size)

    def _keep_for_warmup(self, samples: Samples, scores: Scores) -> None:
        """What the critic alone learns from, for another run to learn from without sampling. Collective."""
        if self._critic_alone and self.warmup.keeps:
            iteration, params, first = self.state.global_step + 1, self.sampling_params(), self.rank == 0
            self.together(lambda: self.warmup.keep(iteration, samples, scores, params) if first else None)

    def sampling_params(self) -> SamplingParams:
        """How replies of this iteration are sampled; the seed depends on recipe seed, iteration and rank alone."""
        rollout = self.config.rollout
        return SamplingParams(
            n=rollout.num_generations,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_new_tokens=rollout.max_completion_length,
            min_new_tokens=rollout.min_completion_length,
            stop_token_ids=self.stop_ids,
            seed=self._sampling_seed(self.state.global_step),
            return_support=self.config.policy_support == "nucleus",
        )

    def _later_sampling_params(self, ahead: int) -> SamplingParams | None:
        """What `sampling_params` will say so many iterations later, asked of a twin of this trainer that stands there,
        so that this one stays where it is; None after the last iteration. A function that was set on this trainer asks
        this one all the same, and gets that iteration's seed."""
        now, coming = self.state.global_step, self.state.global_step + ahead
        if coming >= self.state.max_steps:
            return None
        twin = copy.copy(self)
        twin.state = copy.copy(self.state)
        twin.state.global_step = coming
        params = twin.sampling_params()
        return replace(params, seed=self._sampling_seed(coming)) if params.seed == self._sampling_seed(now) else params

    def _sampling_seed(self, iteration: int) -> int:
        return derive(self.seed, "rollout", iteration, self.rank)

    def collect(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> Samples:
        """Sample replies to this rank's prompts."""
        return self.rollout.sample(accepted.as_prompts(prompts, "prompts"), params or self.sampling_params())

    def score(self, samples: Samples) -> Scores:
        """The reward's verdict on each reply, in its own unit, float64; with that of its parts where it has some. NaN
        for replies it failed on, with `on_reward_error: mask`.

        Raises:
            RewardError: not one finite float a reply.
        """
        with self.offload.here("reward"):
            return Scores.of(self.reward, samples, self.reward_takes_ids, self.config.on_reward_error, self.world_size)

    def together(self, work: Callable[[], Result]) -> Result:
        """`work()` of this rank, once it has gone well on all of them.

        Raises:
            TrainingError: on every rank, with the words of the first AlignError (engine's, reward's) of any; of another
                exception on the ranks that did not meet it. Those that did raise it as it came.
        """
        return together(work)

    def make_experience(self, samples: Samples, scores_N: Tensor) -> tuple[Experience, dict[str, float]]:
        """The experience of the global batch and its metrics; every rank computes its share of the passes. A reply
        whose score is NaN teaches nothing (`on_reward_error: mask`)."""
        return self._experience(samples, scores_N, late=False)

    def _experience(self, samples: Samples, scores_N: Tensor, late: bool) -> tuple[Experience, dict[str, float]]:
        """`late`: without a pass of the policy, and without what the log says of it: the update makes up for both."""
        config, device = self.config, self.accelerator.device
        generations, sampled = config.rollout.num_generations, not self._takes_stored
        room = reply_room(config)
        tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids, self.pad_id, generations, room).to(device)
        support = support_of(samples, tokens, config) if sampled else None  # the policy's loss alone asks for it
        full_kl = self._full_kl(tokens)  # before a pass may be kept
        keeps = not self.warming_up
        passes = self.model_passes.run(tokens, support, self.minibatches, self.together, keeps=keeps, late=late)
        finished_N, mask_NS = torch.tensor(samples.finished, device=device), tokens.mask_NS
        scores_N = scores_N.to(device)
        judged_N = ~scores_N.isnan()
        counts_N = counted_replies(judged_N, finished_N, config)
        learnt_NS = mask_NS if counts_N is None else mask_NS & counts_N[:, None]

        penalized_N = self.penalize_scores(scores_N.where(judged_N, 0.0), finished_N, mask_NS.sum(1))
        normalized_N = self.normalize_scores(penalized_N, counts_N)
        kl_NS = functional.kl_estimate(passes.full, passes.ref, config.kl_estimator)  # late: of zeros, and weighs 0
        rewards_NS = self.shape_rewards(normalized_N, kl_NS, learnt_NS)
        advantages_NS, returns_NS, deviation = self.compute_advantages(rewards_NS, passes.values, learnt_NS)

        by_reply = config.loss_aggregation == "sequence"
        experience = Experience(
            tokens=tokens,
            mask_NS=learnt_NS,
            scores_N=scores_N,
            normalized_N=normalized_N,
            old_logps_NS=passes.full if passes.ratio is None else passes.ratio,
            ref_logps_NS=passes.ref,
            old_values_NS=passes.values,
            rewards_NS=rewards_NS,
            advantages_NS=advantages_NS,
            returns_NS=returns_NS,
            full_logps_NS=None if passes.ratio is None else passes.full,
            sampler_logps_NS=sampler_logps(samples, tokens, config) if sampled else None,
            weights_NS=functional.token_weights(learnt_NS, "sequence") if by_reply else None,
            support=support,
            kept=passes.kept,
            late=passes.late,
        )
        if config.rollout.exact and sampled:
            require_exact(samples, tokens, passes.full)
        metrics = {} if late else policy_metrics(samples, experience, passes.entropy)
        return experience, metrics | self._rollout_metrics(samples, experience, deviation) | full_kl

    def _late_metrics(self, samples: Samples, experience: Experience) -> dict[str, float]:
        """What the log says of the policy as it sampled, where only the update has asked it. Collective."""
        if experience.late is None:
            return {}
        experience.late.over_ranks(self.accelerator)
        return policy_metrics(samples, experience, experience.late.told["entropy"])

    def _rollout_metrics(self, samples: Samples, experience: Experience, deviation: float) -> dict[str, float]:
        metrics = rollout_metrics(samples, experience, deviation)
        metrics |= {"kl_coef": self.kl.coef, **staleness(samples, self.policy_version)}
        if self.config.on_reward_error == "mask":
            metrics["reward/failed"] = float(experience.scores_N.isnan().sum())
        return metrics

    def _full_kl(self, tokens: TokenBatch) -> dict[str, float]:
        if not self._logs_now:
            return {}
        seed = derive(self.seed, "full_kl", self.state.global_step)
        return {"kl/full_token": self.model_passes.full_kl(tokens, seed, self.together)}

    @property
    def _asks_policy_late(self) -> bool:
        """Whether the coming iteration's update may make the policy's pass for the experience too: nothing asks for it
        before, neither what the recipe says nor a seam that somebody replaced."""
        seams = ("make_experience", "shape_rewards", "update", "minibatches")
        ours = all(getattr(getattr(self, seam), "__func__", None) is vars(PPOTrainer)[seam] for seam in seams)
        return self.config.asks_policy_late and self._kl_coef_in_reward == 0 and not self.warming_up and ours

    @property
    def _kl_coef_in_reward(self) -> float:
        return self.kl.coef if self.config.kl_in == "reward" else 0.0

    def penalize_scores(self, scores_N: Tensor, finished_N: Tensor, lengths_N: Tensor) -> Tensor:
        """Scores after the penalties for a missing end and for length, in the reward's own unit."""
        config = self.config
        return functional.penalize(
            scores_N,
            finished_N,
            lengths_N,
            missing_eos_penalty=config.missing_eos_penalty,
            length_penalty=config.length_penalty,
            length_penalty_free=config.length_penalty_free,
        )

    def normalize_scores(self, scores_N: Tensor, counts_N: Tensor | None = None) -> Tensor:
        """Running mean, deviation or both (this whole batch counted in first, where `counts_N` says so), then clip."""
        if self.config.normalize_reward != "none":
            self.reward_stats.update(scores_N if counts_N is None else scores_N[counts_N])
            scores_N = self.reward_stats.normalize(scores_N)
        limit = self.config.reward_clip_range
        return scores_N if limit is None else scores_N.clamp(-limit, limit)

    def shape_rewards(self, normalized_N: Tensor, kl_NS: Tensor, mask_NS: Tensor) -> Tensor:
        """rewards_NS: the score on the last reply token, minus the KL coefficient times the KL of each token."""
        return functional.shape_rewards(normalized_N, kl_NS, mask_NS, self._kl_coef_in_reward)

    def compute_advantages(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor
    ) -> tuple[Tensor, Tensor | None, float]:
        """(advantages_NS, the critic's targets_NS, standard deviation before whitening), over the whole global batch;
        without a critic there are no values and no targets. The estimator is one of `advantages.py`."""
        groups_N = reply_groups(len(rewards_NS), self.config.rollout.num_generations).to(rewards_NS.device)
        advantages_NS, returns_NS = self.estimator(rewards_NS, values_NS, mask_NS, groups_N)
        moments = functional.Moments.of(advantages_NS, mask_NS)
        if self.config.whiten_advantages:
            advantages_NS = functional.whiten(advantages_NS, mask_NS, moments.mean, moments.var)
        return advantages_NS, returns_NS, float(moments.var.sqrt())

    def minibatches(self, tokens: TokenBatch, epoch: int) -> list[tuple[Tensor, list[Tensor]]]:
        """This epoch's minibatches, a shuffle of the prompts: global rows, and this rank's rows by micro-batch."""
        config, n = self.config, self.config.rollout.num_generations
        prompts = shuffled(self.responses // n, derive(self.seed, "shuffle", self.state.global_step, epoch))
        order_N = (prompts[:, None] * n + torch.arange(n)).flatten()
        room = Room.of(tokens, config, self._share_prompts)
        return plan_minibatches(order_N, room, config.num_mini_batches, self.rank, self.world_size)

    @property
    def warming_up(self) -> bool:
        """Whether the coming optimizer step is the critic's alone."""
        return self.optimizer_steps < self.config.critic_warmup_steps

    @property
    def _critic_alone(self) -> bool:
        """Whether all optimizer steps of the coming update are."""
        steps = self.config.num_ppo_epochs * self.config.num_mini_batches
        return self.optimizer_steps + steps <= self.config.critic_warmup_steps

    @property
    def _takes_stored(self) -> bool:
        """Whether the coming iteration's replies are read in place of being sampled."""
        return self.warmup.stored is not None and self._critic_alone

    def update(self, experience: Experience) -> dict[str, float]:
        """`num_ppo_epochs` passes of `num_mini_batches` optimizer steps, and the new weights for the engine; returns
        their mean statistics.

        With `target_kl` the first minibatch on which the policy is already further away than that ends the update.

        Raises:
            TrainingError: a gradient that is not finite (unless such steps are skipped); the models are as before that
                step, and saved. Or the engine does not take the new weights; the models are saved then, too.
        """
        learner, metrics, version = self.learner, UpdateMetrics(), self.policy_version
        epochs = range(self.config.num_ppo_epochs)
        plan = [step for epoch in epochs for step in self.minibatches(experience.tokens, epoch)]
        for at, (rows_B, micros) in enumerate(plan):
            minibatch, with_policy = Minibatch.of(experience, rows_B, micros), not self.warming_up
            measure = self.policy_version == version and learner.measures_ptx(self._logs_now)
            if with_policy:  # before the critic, so that no graph is held beside one that was kept
                distance = learner.policy_gradient(minibatch, self.policy_loss, self.kl.coef, metrics, measure)
            learner.critic_gradient(minibatch, self.value_loss, metrics)
            if with_policy:
                if learner.is_too_far(distance, minibatch):
                    learner.drop_gradients()
                    metrics.count("steps_left_out", len(plan) - at)
                    break
                learner.ptx_gradient(self.ptx_loss, metrics, measure)
            with self._saved_where(
                NotFiniteError,
                "{problem} in iteration {iteration}; the models as they were before that step are saved in {folder}: "
                "continue from an earlier checkpoint with a lower learning rate, or look at samples.jsonl",
            ):
                learner.step(metrics, with_policy=with_policy)
        self.rollout.wait()  # for the coming batch; while another is sampled, the engine keeps its weights
        pushed = {}
        if self.policy_version != version and self.rollout.free:
            with self._saved_where(
                TrainingError, "{problem} (iteration {iteration}); the models after its update are saved in {folder}"
            ):
                pushed = self.weight_sync.push(self.policy_version)
        return {"steps_left_out": 0.0, **metrics.over_ranks(self.accelerator), **pushed}

    @contextmanager
    def _saved_where(self, kind: type[TrainingError], words: str) -> Iterator[None]:
        """Where an error of this kind is raised inside, save the models apart from the sound checkpoints, and say so in
        these words."""
        try:
            yield
        except kind as problem:
            folder, iteration = self.checkpoints.save_failed(self.state), self.state.global_step + 1
            raise SavedError(words.format(problem=problem, iteration=iteration, folder=folder)) from problem

    def policy_loss(self, logps_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over reply tokens, and sums for the log; `logps_BS` on the support of `batch.old_logps_NS`."""
        weights_BS = batch.weights_NS
        if batch.importance_NS is not None:
            weights_BS = batch.importance_NS if weights_BS is None else weights_BS * batch.importance_NS
        return functional.policy_loss(
            logps_BS,
            batch.old_logps_NS,
            batch.advantages_NS,
            batch.mask_NS,
            self.config.cliprange,
            dual_clip=self.config.dual_clip,
            weights_BT=weights_BS,
        )

    def value_loss(self, values_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over reply tokens, and sums for the log.

        Raises:
            TypeError: `compute_advantages` gave no targets.
        """
        if batch.returns_NS is None:
            raise TypeError(
                f"advantage={self.config.advantage} has a critic, but compute_advantages gave it no targets: give "
                "(advantages_NS, targets_NS), or register the estimator as one without a critic"
            )
        return functional.value_loss(
            values_BS,
            batch.old_values_NS,
            batch.returns_NS,
            batch.mask_NS,
            self.config.cliprange_value,
            weights_BT=batch.weights_NS,
        )

    def ptx_loss(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Sum over the blocks' tokens of their negative log-likelihood under the policy, and of `ptx_max_z_coef` times
        the squares of the largest logits."""
        coef = self.config.ptx_max_z_coef
        loss_sum, squares = ptx_loss_sum(self.policy.module, input_ids_BT, mask_BT, coef)
        if coef:
            self.ptx.max_z = squares
        return loss_sum

    def evaluate(self, prompts: Sequence[Prompt] | None = None, num_samples: int = 1) -> dict[str, float]:
        """Score, KL, entropy and wins on held-out prompts (default `eval_prompts`; none: no figures); see `evaluation`.

        Raises:
            TrainingError: sampling, a reward or the judge failed; what was trained up to here is saved first, as it is
                before any other exception.
        """
        prompts = self.eval_prompts if prompts is None else accepted.as_prompts(prompts, "prompts")
        with (
            self.checkpoints.evaluation(self.state, self.save_checkpoint),
            enough_memory(self.config, "evaluation"),
        ):
            self.rollout.wait_all()
            self.rollout.raise_problem()
            if not prompts:
                return {}
            return self.evaluation.figures(
                prompts,
                num_samples,
                self.sampling_params(),
                self.collect,
                self.score,
                self.gold,
                self.judge,
                self.together,
                version=self.policy_version,
                iteration=self.state.global_step,
            )

    @property
    def _logs_now(self) -> bool:
        step = self.state.global_step + 1
        return step == 1 or step % self.config.logging_steps == 0

    def _over_ranks(self, samples: Samples, scores: Scores) -> tuple[Samples, Scores]:
        if self.world_size > 1:
            parts = gather_object([(samples, scores)])
            samples = Samples.concatenate([part for part, _ in parts])
            scores = Scores.concatenate([part for _, part in parts])
        where, quiet = f"iteration {self.state.global_step + 1}", not self.accelerator.is_main_process
        require_judged(scores.failures, len(samples), where, quiet)
        return samples, scores

    def _heed_guards(self, metrics: dict[str, float]) -> None:
        reason = reason_to_stop(metrics, self.config.guards)
        if reason is not None:
            raise TrainingError(reason)
        if self.accelerator.is_main_process:
            warn_of(metrics, self.config.guards, self.state.global_step + 1)

    def _note_progress(self, samples: Samples, experience: Experience, scores: Scores) -> None:
        self.pending_samples = sample_rows(samples, experience, self.tokenizer, self.config.log_samples, scores.parts)
        self.state.epoch += self.config.rollout_batch_size / len(self.prompts)
        self.state.num_input_tokens_seen += int(experience.tokens.lengths_N.sum())

    def _costs(self, watch: Stopwatch, experience: Experience) -> dict[str, float]:
        return {
            **watch.metrics(int(experience.tokens.lengths_N.sum())),
            **peak_memory(self.accelerator.device),
            **self.rollout.metrics,
            **{f"lr/{name}": model.learning_rate for name, model in self._trained.items()},
            "optimizer_steps": self.optimizer_steps,
            "warming_up": float(self.warming_up),
        }

    def save_model(self, folder: str | Path) -> None:
        """Write the policy and the tokenizer as a Hugging Face folder, atomically. The critic: `save_critic`."""
        self._save(self.policy.raw, folder)

    def save_ema(self, folder: str | Path) -> None:
        """Write the averaged policy and the tokenizer as a Hugging Face folder, atomically (needs `ema_decay`)."""
        self._save(self.ema.module, folder)

    def save_critic(self, folder: str | Path) -> None:
        """Write the critic, atomically.

        Raises:
            TrainingError: there is none.
        """
        if self.critic is None:
            raise TrainingError(f"there is no critic to save: advantage={self.config.advantage} learns without one")
        self._save(self.critic.raw, folder)

    def _save(self, module: nn.Module, folder: str | Path) -> None:
        state = sharding.gathered_state_dict(module)
        if self.accelerator.is_main_process:
            with atomic_dir(folder) as draft:
                save_model(module, self.tokenizer, draft, state)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> Path:
        """Write `checkpoints/step-N`, from which `train(resume_from_checkpoint=…)` continues bit for bit."""
        self.state.stateful_callbacks = self._callback_states()
        return self.checkpoints.save(self.checkpoint_dir, self.state)

    def load_checkpoint(self, folder: Path) -> None:
        """Continue at the iteration after the one `folder` was written after."""
        self.checkpoints.load(folder, self.state, lambda: self.weight_sync.push(self.policy_version, base=True))
