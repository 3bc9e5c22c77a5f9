"""PPO with a critic, as the Qwen report (3.2.2) and InstructGPT (Ouyang et al. 2022) did it; an own loop on accelerate.

One iteration: `collect` replies, `score` them, `make_experience` (old and reference log-probabilities and old values by
the training forward, `penalize_scores`, `normalize_scores`, `shape_rewards`, `compute_advantages`), `update`. Each is a
seam to override.

Decisions, and departures from the named papers:
- Old log-probabilities come from a pass of their own over the very micro-batches of the first epoch, never from the
  sampler, so the first minibatch's ratio is exactly 1. They are divided by the sampling temperature and normalised over
  the whole vocabulary, old, new and reference alike: with top-p < 1 the replies come from a narrower distribution than
  the one that is scored. Tokens outside the nucleus are never drawn, so nothing pushes their probability but the
  softmax, and the KL is then a penalty, not a measurement; `kept_mass` says how much is left out. `policy_support:
  nucleus` takes the ratio over what the sampler could draw, which is the distribution it drew from; KL and entropy
  stay whole.
- `importance_sampling_correction` weights the policy's loss by min(trainer / engine, cap) where the engine computes in
  another precision or with older weights (`rollout.overlap`: `overlap.py`); both over the full distribution, so it
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
  ptx, no weight decay, no momentum, no schedule. Their rollouts are not used again. When it ends inside an iteration,
  the rest of that iteration updates both. "2 responses" of the report are two independent trajectories.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, gather_object
from torch import nn
from transformers import TrainerCallback

from align.data.encode import encode_prompts
from align.data.fingerprint import fingerprint
from align.data.prompts import PromptSampler
from align.models.save import dress, save_model
from align.recipe.ppo_section import PPOConfig
from align.runs.errors import TrainingError
from align.runs.proof import reset_process_state
from align.runs.seeding import derive
from align.runtime.files import atomic_dir
from align.trainers import accepted, ppo_state, sharding
from align.trainers.average import WeightAverage
from align.trainers.boundary import kept_boundary, kept_state
from align.trainers.controllers import KLController, PtxController
from align.trainers.engine_sync import push_current, sampled_modules
from align.trainers.engines import check_overlap, training_engine
from align.trainers.experience import Samples, Scores, require_judged
from align.trainers.forward import silence_dropout
from align.trainers.guards import enough_memory, reason_to_stop, warn_of
from align.trainers.iterations import loop_arguments
from align.trainers.minibatches import check_split
from align.trainers.offload import Offload, reward_models
from align.trainers.optimization import TrainedModel
from align.trainers.overlap import Ahead
from align.trainers.ppo_eval import evaluate_policy
from align.trainers.ppo_experience import PPOExperience, running_stats
from align.trainers.ppo_metrics import Stopwatch, part_metrics, peak_memory, sample_rows
from align.trainers.ptx import PtxStream
from align.trainers.support import full_logprobs
from data_formats.chatml import END_OF_TEXT, IM_END, control_id
from data_formats.errors import AlignError
from data_formats.records import Prompt
from reward.protocol import Reward, same_tokens
from rollouts.protocol import Engine, SamplingParams

Result = TypeVar("Result")


def make_accelerator(
    mixed_precision: str = "no", report_to: Sequence[str] = (), project_dir: str | Path | None = None
) -> Accelerator:
    """An accelerator as PPO needs it: passes without gradients must not make DDP synchronise buffers, and losses, which
    are scaled here, must not be divided by the `gradient_accumulation_steps` of somebody's accelerate config.

    An earlier stage of this process may have set another precision; that one is forgotten. `project_dir`: where
    trackers that write files put them.
    """
    plugin = sharding.fsdp_plugin(mixed_precision)
    if AcceleratorState._shared_state and (plugin or AcceleratorState().mixed_precision != mixed_precision):
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=list(report_to) or None,
        project_dir=None if project_dir is None else str(project_dir),
        fsdp_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    sharding.also_on_cpu(accelerator, plugin)
    return accelerator


class PPOTrainer(PPOExperience):
    """Trains `policy` to please `reward`, staying near `reference`.

    Args:
        policy: a causal LM; `critic`: gives values_BT for (input_ids, attention_mask). Both are trained in place, with
            their dropout set to 0. Two modules that share nothing, or two roles of one `SharedBackbone`.
        reward: scores replies; never trained. A function becomes a `FunctionReward`; `gold` likewise.
        tokenizer: of the policy, with ChatML's control tokens.
        config: a `PPOConfig`, or the recipe's ppo section, whose data and origins are not read here.
        prompts: what replies are sampled to; at least `rollout_batch_size`. Records, texts, or rows as files have them
            (`{"prompt": …}`, `{"messages": […]}`); `eval_prompts` likewise.
        reference: frozen; default a copy of `policy` as it is now (of a shared backbone, give its role).
        engine: samples replies; default the one that `config.rollout.engine` names.
        ptx_blocks: token ids of pretraining blocks, needed when `ptx_coef` > 0.
        eval_prompts: for `evaluate()`.
        gold: a second reward, asked in `evaluate()` alone and used for nothing but the log.
        callbacks: transformers callbacks.

    Raises:
        BatchSplitError: the batch cannot be cut into equal minibatches and shares.
        TypeError: an argument that is something else, a path for instance; says what to do.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module,
        reward: Reward,
        tokenizer: Any,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        *,
        output_dir: str | Path,
        reference: nn.Module | None = None,
        engine: Engine | None = None,
        ptx_blocks: Sequence[Sequence[int]] = (),
        eval_prompts: Sequence[Prompt] = (),
        gold: Reward | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
        seed: int = 0,
    ):
        accepted.require_roles(policy, critic, reference)
        accepted.require_tokenizer(tokenizer, "tokenizer")
        accepted.require_vocabulary(tokenizer, policy=policy, critic=critic, reference=reference)
        accepted.require_config(config, "config")
        accepted.require_engine(engine, "engine")
        reward = accepted.as_reward(reward, "reward")
        self.config, self.reward, self.tokenizer, self.seed = config, reward, tokenizer, seed
        self.gold = None if gold is None else accepted.as_reward(gold, "gold")
        self.prompts = accepted.as_prompts(prompts, "prompts")
        self.eval_prompts, self.output_dir = accepted.as_prompts(eval_prompts, "eval_prompts"), Path(output_dir)
        self.accelerator = accelerator or make_accelerator()
        reset_process_state(self.accelerator)
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        check_split(config.rollout_batch_size, config.rollout.num_generations, config.num_mini_batches, self.world_size)
        self.responses = config.rollout_batch_size * config.rollout.num_generations
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.end_id = control_id(tokenizer, IM_END)
        self.stop_ids = (self.end_id, control_id(tokenizer, END_OF_TEXT))
        self.reward_takes_ids = same_tokens(reward, tokenizer)
        self.offload = Offload(config.offload, self.accelerator)
        self.offload.rest("reward", *reward_models(reward, self.gold))
        self._set_up_models(policy, critic, reference)
        self.reward_stats = running_stats(config.normalize_reward)
        self.kl = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.ptx_coef = PtxController(config.ptx_coef, config.ptx_grad_norm_ratio)
        self.sampler = PromptSampler(len(self.prompts), config.rollout_batch_size, derive(seed, "prompts"))
        self.ptx = self._make_ptx(ptx_blocks)
        sets = {"data": self.prompts, "eval_data": self.eval_prompts, "ptx_data": list(ptx_blocks)}
        self.data = {f"ppo.{name}": fingerprint(rows) for name, rows in sets.items()}
        self.optimizer_steps = 0
        self.policy_version = 0
        self.pushed_version: int | None = None  # what an engine with weights of its own has
        self.args = loop_arguments(config, self.output_dir, bool(eval_prompts), seed, self.accelerator)
        self.engine = engine or training_engine(
            config, self.policy.raw, self.pad_id, seed=derive(seed, "engine"), accelerator=self.accelerator
        )
        check_overlap(config, self.engine)
        self.ahead = Ahead(self)
        self._set_up_loop(callbacks, self.policy.raw, tokenizer, self.policy.optimizer, self.policy.schedule)

    def _set_up_models(self, policy: nn.Module, critic: nn.Module, reference: nn.Module | None) -> None:
        for module in (policy, critic):  # now, so that the configs in all checkpoints are those in the models
            dress(module, self.tokenizer)
        reference = copy.deepcopy(policy) if reference is None else reference
        for module in (policy, critic, reference):
            silence_dropout(module)
            module.train(module is not reference and getattr(module, "is_gradient_checkpointing", False))
        steps = self.config.num_iterations * self.config.num_ppo_epochs * self.config.num_mini_batches
        decay = self.config.ema_decay
        self.ema = None if decay is None else WeightAverage(policy, decay, self.accelerator)
        shared: dict[str, Any] = {"accelerator": self.accelerator, "offload": self.offload}
        policy_steps = steps - self.config.critic_warmup_steps
        self.policy = TrainedModel(policy, self.config.policy, total_steps=policy_steps, name="ppo.policy", **shared)
        self.critic = TrainedModel(critic, self.config.critic, total_steps=steps, name="ppo.critic", **shared)
        reference.requires_grad_(False)
        self.reference, _ = sharding.prepare(self.accelerator, reference)
        self.offload.rest("reference", self.reference)

    def _make_ptx(self, blocks: Sequence[Sequence[int]]) -> PtxStream | None:
        per_step = self.config.ptx_ratio * self.responses // self.config.num_mini_batches
        if not self.config.uses_ptx or per_step == 0:
            return None
        return PtxStream(blocks, per_step, self.config.ptx_rows_at_once, derive(self.seed, "ptx"), self.pad_id)

    def step(self) -> dict[str, float]:
        """Collect, score, update; returns the iteration's metrics.

        Raises:
            TrainingError: an error of ours, with what is saved; any other exception comes as it is, with a note of it.
        """
        with kept_boundary(self):
            return self._iterate(Stopwatch())

    def _iterate(self, watch: Stopwatch) -> dict[str, float]:
        version = self.policy_version
        mine = self.ahead.next_prompts()[self.rank :: self.world_size]
        push_current(self)  # before the first iteration; later ones end with it
        with watch("rollout"), sharding.unsharded(*sampled_modules(self)):
            samples = self.together(
                enough_memory(self.config, "rollout")(lambda: self.collect([self.prompts[index] for index in mine]))
            )
        self.ahead.begin()
        with watch("score"):
            scores = self.together(enough_memory(self.config, "score")(lambda: self.score(samples)))
        with watch("experience"):
            samples, scores = self._over_ranks(samples, scores)
            with enough_memory(self.config, "experience"):
                experience, metrics = self.make_experience(samples, scores.total_N)
            metrics |= part_metrics(scores.parts)
        self._heed_guards(metrics)
        self.updating = True
        with watch("update"), enough_memory(self.config, "update"):
            metrics |= self.update(experience)
        if "kl/reply" in metrics and self.policy_version != version:  # after the update, which may be weighed by it
            self.kl.update(metrics["kl/reply"], len(samples))
        self.pending_samples = sample_rows(samples, experience, self.tokenizer, self.config.log_samples, scores.parts)
        self.state.epoch += self.config.rollout_batch_size / len(self.prompts)
        self.state.num_input_tokens_seen += int(experience.tokens.lengths_N.sum())
        rates = {"lr/policy": self.policy.learning_rate, "lr/critic": self.critic.learning_rate}
        progress = {"optimizer_steps": self.optimizer_steps, "warming_up": float(self.warming_up)}
        cost = {**watch.metrics(int(experience.tokens.lengths_N.sum())), **peak_memory(self.accelerator.device)}
        cost |= {"seconds/wait": self.ahead.seconds} if self.config.rollout.overlap else {}
        return {**metrics, **cost, **rates, **progress}

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
            seed=derive(self.seed, "rollout", self.state.global_step, self.rank),
            return_support=self.config.policy_support == "nucleus",
        )

    def collect(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> Samples:
        """Sample replies to this rank's prompts."""
        params, prompts = params or self.sampling_params(), accepted.as_prompts(prompts, "prompts")
        prompt_ids = encode_prompts(
            self.tokenizer, [prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts]
        )
        completions = self.ahead.take(prompt_ids, params)
        if completions is None:
            self.engine.wake()
            completions = self.engine.generate(prompt_ids, params)
            self.engine.sleep()
        reply_ids = tuple(tuple(completion.token_ids) for completion in completions)
        texts = self.tokenizer.batch_decode([list(ids) for ids in reply_ids], skip_special_tokens=True)
        return Samples(
            prompts=tuple(prompt for prompt in prompts for _ in range(params.n)),
            prompt_ids=tuple(tuple(ids) for ids in prompt_ids for _ in range(params.n)),
            reply_ids=reply_ids,
            replies=tuple(texts),
            finished=tuple(ids[-1] == self.end_id for ids in reply_ids),
            engine_logps=tuple(full_logprobs(completion) for completion in completions),
            kept_mass=tuple(completion.kept_mass for completion in completions),
            supports=tuple(completion.support for completion in completions),
            weight_versions=tuple(completion.weight_version for completion in completions),
        )

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
        result, problem, words = None, None, ""
        try:
            result = work()
        except Exception as error:
            problem, words = error, str(error) if isinstance(error, AlignError) else f"{type(error).__name__}: {error}"
        problems = gather_object([words]) if self.world_size > 1 else [words]
        if problem is not None and not isinstance(problem, AlignError):
            raise problem
        if any(problems):
            raise TrainingError(next(filter(None, problems))) from problem
        return result

    def _heed_guards(self, metrics: dict[str, float]) -> None:
        reason = reason_to_stop(metrics, self.config.guards)
        if reason is not None:
            raise TrainingError(reason)
        if self.accelerator.is_main_process:
            warn_of(metrics, self.config.guards, self.state.global_step + 1)

    def _over_ranks(self, samples: Samples, scores: Scores) -> tuple[Samples, Scores]:
        if self.world_size > 1:
            parts = gather_object([(samples, scores)])
            samples = Samples.concatenate([part for part, _ in parts])
            scores = Scores.concatenate([part for _, part in parts])
        where, quiet = f"iteration {self.state.global_step + 1}", not self.accelerator.is_main_process
        require_judged(scores.failures, len(samples), where, quiet)
        return samples, scores

    def evaluate(self, prompts: Sequence[Prompt] | None = None, num_samples: int = 1) -> dict[str, float]:
        """Score, KL and entropy on held-out prompts (default `eval_prompts`; none: no figures); see `ppo_eval`.

        Raises:
            TrainingError: sampling or the reward failed; what was trained up to here is saved first, as it is before
                any other exception.
        """
        prompts = self.eval_prompts if prompts is None else accepted.as_prompts(prompts, "prompts")
        self.ahead.wait()
        with kept_state(self), enough_memory(self.config, "evaluation"):
            self.ahead.raise_problem()
            return evaluate_policy(self, prompts, num_samples) if prompts else {}

    def save_model(self, folder: str | Path) -> None:
        """Write the policy and the tokenizer as a Hugging Face folder, atomically. The critic: `save_critic`."""
        state = sharding.gathered_state_dict(self.policy.raw)
        if self.accelerator.is_main_process:
            with atomic_dir(folder) as draft:
                save_model(self.policy.raw, self.tokenizer, draft, state)
        self.accelerator.wait_for_everyone()

    def save_ema(self, folder: str | Path) -> None:
        """Write the averaged policy and the tokenizer as a Hugging Face folder, atomically (needs `ema_decay`)."""
        state = sharding.gathered_state_dict(self.ema.module)
        if self.accelerator.is_main_process:
            with atomic_dir(folder) as draft:
                save_model(self.ema.module, self.tokenizer, draft, state)
        self.accelerator.wait_for_everyone()

    def save_critic(self, folder: str | Path) -> None:
        """Write the critic, atomically."""
        state = sharding.gathered_state_dict(self.critic.raw)
        if self.accelerator.is_main_process:
            with atomic_dir(folder) as draft:
                save_model(self.critic.raw, self.tokenizer, draft, state)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> Path:
        """Write `checkpoints/step-N`, from which `train(resume_from_checkpoint=…)` continues bit for bit."""
        return ppo_state.save(self, self.checkpoint_dir)

    def load_checkpoint(self, folder: Path) -> None:
        """Continue at the iteration after the one `folder` was written after."""
        ppo_state.load(self, folder)
