"""PPO: policy and reference from the sft stage, reward model and critic from the rm stage (or what the recipe names).

Leaves `model/` (the policy), `critic/` where the advantages need one, `checkpoints/`, `metrics.jsonl`, `samples.jsonl`,
`summary.json`, `warmup/` with the replies that were sampled for the critic alone (`align.stages.warmup`), and, with
`evaluation.save_best`, `best/model` (the policy that the held-out prompts' reward liked best). With `eval_data` the
policy is evaluated before and after on held-out prompts, by the reward it is trained on, by `gold_reward`, which
nothing is trained on, and by `judge`, against the replies that it began with; the gold score of the embedded world is
none of this stage's business.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.recipe import Recipe, batch_plan
from align.recipe.epochs import epochs_of
from align.recipe.lineage import Origin, critic_origin, init_origin, judge_origins, reward_origins, stage_dir
from align.recipe.ppo_section import PPOSection
from align.report.names import reward_named
from align.runs.callbacks import stage_callbacks, tracker_callbacks
from align.runs.checkpoint import latest, step_of
from align.runs.interrupt import StopFlag
from align.runs.seeding import derive, seed_everything
from align.runtime.errors import AlignError
from align.stages import common
from align.stages.drafts import prove_outputs
from align.stages.ending import early_stopping, ended_early, tell_epochs
from align.stages.judges import looks_judged_by, recipe_judge
from align.stages.prompts import check_room, fitting
from align.stages.rewards import build_reward
from align.stages.selection import chosen
from align.stages.user_code import own_callbacks, trainer_class
from align.stages.warmup import warmup_rollouts
from data_formats.records import Document, Prompt

BAR = ("score/mean", "eval/score", "kl/reply", "entropy", "length/mean", "end_rate")


class CriticError(AlignError, ValueError):
    """A critic that cannot read the policy's tokens."""


def run_ppo(
    recipe: Recipe, stage: str = "ppo", *, section: PPOSection | None = None, out_dir: Path | None = None
) -> dict[str, Any]:
    """Run the stage and leave its folder behind; continues from its newest checkpoint.

    Args:
        section: in place of the recipe's, for a control.
        out_dir: in place of `<output_dir>/ppo`.

    Returns:
        The summary, also in `summary.json`: `score`, `score_before`, `kl` (nats a reply), `entropy` (nats a token), …

    Raises:
        AlignError: a leaf that names what is missing or wrong; TrainingError when something is not finite.
        StageStopped: Ctrl-C, or a scheduler's signal; a checkpoint was written.
    """
    began = time.perf_counter()
    section = section or recipe.ppo
    recipe = recipe.model_copy(update={"ppo": section})
    batch_plan(recipe, "ppo")
    out_dir = out_dir or stage_dir(recipe, stage)
    trainer, figures = build(recipe, section, out_dir, stage)
    with closing(trainer.engine):  # a server does not outlive the stage, however that ends
        common.open_folder(recipe, out_dir)
        prove_outputs(stage, out_dir, trainer.tokenizer, _outputs(trainer))
        newest = latest(trainer.checkpoint_dir)
        start, training = step_of(newest) if newest else 0, time.perf_counter()
        prompts = figures["prompts"]
        epochs = epochs_of(section.num_iterations, section.rollout_batch_size, prompts)
        tell_epochs(stage, section, section.num_iterations, epochs, prompts, step="iterations", row="prompts")
        still = section.warmup_iterations  # until then every evaluation is of the same policy
        early = early_stopping(section, after=still)
        added = [*early, *tracker_callbacks(recipe, out_dir)]
        with StopFlag() as flag:
            shown = {"metrics": False, "figures": BAR, "epochs": epochs}
            for callback in stage_callbacks(stage, out_dir, flag, start, added=added, **shown):
                trainer.add_callback(callback)
            state = trainer.train(resume_from_checkpoint=newest)
            code = flag.code()
        if state.global_step < state.max_steps and code is not None:
            raise _stopped(stage, state, code)
        figures |= {
            "steps": state.global_step,
            "epochs": round(epochs_of(state.global_step, section.rollout_batch_size, prompts), 3),
            **ended_early(state, early),
            "optimizer_steps": trainer.optimizer_steps,
            "rewarded_by": reward_named(section.model_dump(mode="json"), {}),
            "train_seconds": round(time.perf_counter() - training, 2),
            "resumed_from": start,
        }
        trainer.save_model(out_dir / "model")
        if trainer.critic is not None:
            trainer.save_critic(out_dir / "critic")
        if trainer.ema is not None:
            trainer.save_ema(out_dir / "ema")
        figures |= _last_evaluation(trainer)
    figures |= summary_figures(trainer.state.log_history)
    if section.mixture is not None:
        figures["mixture"] = trainer.sampler.order.drawn(trainer.state.global_step)
    return common.finish(out_dir, figures, began)


def _stopped(stage: str, state: Any, code: int) -> common.StageStopped:
    """What is raised once the iteration that a stop came in is saved; `code` is the program's then."""
    where = f"iteration {state.global_step} of {state.max_steps}"
    return common.StageStopped(f"stage '{stage}' stopped at {where}", code)


def _outputs(trainer: Any) -> dict[str, Any]:
    """The models that the stage will save, by folder."""
    models = {"model": trainer.policy.raw}
    models |= {} if trainer.critic is None else {"critic": trainer.critic.raw}
    models |= {} if trainer.ema is None else {"ema": trainer.ema.module}
    return models | ({"best/model": trainer.policy.raw} if trainer.config.evaluation.save_best else {})


def build(recipe: Recipe, section: PPOSection, out_dir: Path, stage: str = "ppo") -> tuple[Any, dict[str, Any]]:
    """The trainer with everything it needs, and what was read."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import recipe_tokenizer
    from align.trainers import sharding
    from align.trainers.ppo import PPOTrainer, make_accelerator

    seed = derive(recipe.seed, stage)
    seed_everything(seed)
    accelerator = make_accelerator(recipe.model.mixed_precision)
    if accelerator.num_processes > 1:
        common.LOG.info("%s: %s", stage, sharding.described(accelerator))
    origin = init_origin(recipe, "ppo")
    path = common.origin_path(recipe, origin, stage=stage)
    tokenizer = recipe_tokenizer(path, recipe.model)
    blocks, ptx_reports = ptx_blocks(recipe, section, tokenizer)
    prompts, eval_prompts, read = read_prompts(recipe, section, tokenizer, out_dir, stage, ptx_reports)
    warmup = warmup_rollouts(recipe, section, tokenizer, prompts, path, out_dir)
    roles = shared_roles(recipe, section, tokenizer, path, accelerator.is_fsdp2)
    ready = None if roles is None else roles.rewards
    reward = build_reward(recipe, tokenizer, stage=stage, device=accelerator.device, ready=ready)
    gold = None
    if section.gold_reward:
        gold = build_reward(recipe, tokenizer, stage=stage, key="gold_reward", name="gold", device=accelerator.device)
    judge = recipe_judge(recipe, tokenizer, stage=stage, out_dir=out_dir, device=accelerator.device)
    if roles is None:
        policy = load_causal_lm(path, recipe.model, tokenizer=tokenizer, seed=derive(seed, "adapter"))
        critic = load_critic(recipe, reward, tokenizer, path, stage) if section.estimator.critic else None
        reference = None
    else:
        policy, critic, reference = roles.policy, roles.critic, roles.reference
    check_room(policy, section.rollout, stage)
    trainer = trainer_class(section, stage, PPOTrainer)(
        policy,
        critic,
        reward,
        tokenizer,
        section,
        prompts,
        output_dir=out_dir,
        reference=reference,
        ptx_blocks=blocks,
        warmup=warmup,
        eval_prompts=eval_prompts,
        gold=gold,
        judge=judge,
        callbacks=own_callbacks(section, stage),
        accelerator=accelerator,
        seed=seed,
    )
    origins = {"policy": origin} | reward_origins(recipe) | judge_origins(recipe)
    counts = {"prompts": len(prompts), "eval_prompts": len(eval_prompts), "ptx_blocks": len(blocks)}
    counts |= {"origins": {role: asdict(one) for role, one in origins.items()}}
    return trainer, read | counts | looks_judged_by(recipe, judge)


def read_prompts(
    recipe: Recipe, section: PPOSection, tokenizer: Any, out_dir: Path, stage: str, ptx_reports: list[Any]
) -> tuple[list[Prompt], list[Prompt], dict[str, Any]]:
    """The prompts of training, those that it is measured on, and what was read, `ptx_reports` included."""
    from align.data.load import load_records
    from align.data.mixture import parted_by

    prompts, reports = load_records(section.data, Prompt, recipe, section.cleaning, by=parted_by(section))
    prompts, choice = chosen(recipe, stage, section, prompts, out_dir)
    prompts, dropped = fitting(prompts, tokenizer, section.rollout, "ppo.data")
    eval_prompts, more = load_records(section.eval_data, Prompt, recipe) if section.eval_data else ([], [])
    eval_dropped: dict[str, int] = {}
    if eval_prompts:
        eval_prompts, eval_dropped = fitting(eval_prompts, tokenizer, section.rollout, "ppo.eval_data")
    told = common.described(stage, [*reports, *more, *ptx_reports], dropped, eval_dropped)
    return prompts, eval_prompts, choice | told


def shared_roles(recipe: Recipe, section: PPOSection, tokenizer: Any, policy_path: str, sharded: bool) -> Any:
    """Policy, reference, critic and reward models as adapters of one base (`align.models.role_loading.Roles`), or None
    where each is to have a backbone of its own: `shared_backbone: false`, or `auto` and they do not fit.

    Args:
        sharded: whether the launcher asked for FSDP2.

    Raises:
        RoleError: `shared_backbone: true`, and they do not fit; says why.
        MissingFileError, ModelFileError: a model that is not there, or torn.
    """
    from align.models.role_adapters import RoleError
    from align.models.role_fit import plan_sharing
    from align.models.role_loading import load_roles

    if section.shared_backbone is False or recipe.model.adapter == "none":
        return None
    rewards = [common.origin_path(recipe, origin, stage="ppo") for origin in reward_origins(recipe).values()]
    critic = common.origin_path(recipe, critic_origin(recipe), stage="ppo") if section.estimator.critic else None
    try:
        if sharded:
            raise RoleError("FSDP2 shards each model on its own; launch with DDP to share one")
        plan = plan_sharing(policy_path, rewards, critic, recipe.model, tokenizer.get_vocab())
        roles = load_roles(plan, recipe.model, seed=derive(recipe.seed, "ppo", "adapter"))
    except RoleError as reason:
        if section.shared_backbone is True:
            raise RoleError(f"ppo.shared_backbone=true: {reason}") from reason
        common.LOG.info("ppo: every model has a backbone of its own: %s", reason)
        return None
    what = "a copy of the policy's adapter" if plan.policy is not None else "the base alone"
    common.LOG.info("ppo: all models are adapters of one base, %s; the reference is %s", plan.base, what)
    return roles


def load_critic(recipe: Recipe, reward: Any, tokenizer: Any, policy_path: str, stage: str) -> Any:
    """The critic of the recipe's origin, or the policy's body where the (first) reward model reads other tokens.

    Raises:
        CriticError: what it starts from has fewer tokens than the policy.
    """
    from align.models.load import load_critic
    from reward.combined import leaves
    from reward.errors import VocabularyError
    from reward.protocol import same_tokens

    named: Origin = critic_origin(recipe)
    path = common.origin_path(recipe, named, stage=stage)
    model = next((leaf for leaf in leaves(reward) if getattr(leaf, "tokenizer", None) is not None), None)
    if recipe.ppo.critic_from is None and not same_tokens(model, tokenizer):
        common.LOG.info("%s: the reward has its own tokenizer, so the critic starts from the policy's body", stage)
        path = policy_path
    try:
        return load_critic(path, recipe.model, tokenizer=tokenizer)
    except VocabularyError as error:
        key = "ppo.critic_from" if recipe.ppo.critic_from is not None else "the critic starts from the reward model"
        raise CriticError(f"{key}: {error} (the policy's); name a model with that in ppo.critic_from") from error


def ptx_blocks(recipe: Recipe, section: PPOSection, tokenizer: Any) -> tuple[list[list[int]], list[Any]]:
    """Token blocks of the ptx documents and the reports of their reading; none of either when ptx is off."""
    from align.data.encode import encode_documents
    from align.data.load import load_records

    if not section.uses_ptx:
        return [], []
    documents, reports = load_records(section.ptx_data, Document, recipe)
    blocks = [block for block in encode_documents(tokenizer, documents, section.ptx_max_length) if len(block) > 1]
    common.need_rows(blocks, {}, what="the ptx documents hold no text", keys="ppo.ptx_data")
    return blocks, reports


def _last_evaluation(trainer: Any) -> dict[str, Any]:
    """Evaluate what is saved, unless its last iteration ended with that; which model was the best.

    A failed evaluation leaves a checkpoint of the last iteration, from which the same command evaluates alone.
    """
    from align.trainers.ppo.loop import BEST_MODEL

    state = trainer.state
    if trainer.eval_prompts and "eval/score" not in state.log_history[-1]:
        trainer.look()
    if state.best_metric is None:
        return {}
    return {"best_step": state.best_global_step, "best_score": state.best_metric, "best_model": str(BEST_MODEL)}


def summary_figures(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Last figures of the run, on held-out prompts where there are any, else on the last rollouts."""
    rollouts = [line for line in history if "score/mean" in line]
    evaluations = [line for line in history if "eval/score" in line]
    last = rollouts[-1]
    figures = {
        "rollout_score_first": rollouts[0]["score/mean"],
        "rollout_score": last["score/mean"],
        "kl": last["kl/reply"],
        "entropy": last["entropy"],
        "end_rate": last["end_rate"],
        "distinct": last["distinct"],
        "reply_tokens": last["length/mean"],
    }
    if "value/explained_variance" in last:
        figures["explained_variance"] = last["value/explained_variance"]
    if evaluations:
        first, final = evaluations[0], evaluations[-1]
        figures |= {
            "score_before": first["eval/score"],
            "score": final["eval/score"],
            "score_greedy_before": first["eval/score_greedy"],
            "score_greedy": final["eval/score_greedy"],
            "kl": final["eval/kl"],
            "entropy_before": first["eval/entropy"],
            "entropy": final["eval/entropy"],
            "end_rate": final["eval/end_rate"],
        }
        for name in ("gold", "gold_greedy"):
            if f"eval/{name}" in final:
                figures |= {f"{name}_before": first.get(f"eval/{name}"), name: final[f"eval/{name}"]}
        for name in ("win_rate", "win_rate_greedy"):
            if f"eval/{name}" in final:
                figures[name] = final[f"eval/{name}"]
    return figures
