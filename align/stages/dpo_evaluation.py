"""What DPO made of the policy that it started from, on the prompts of held-out pairs; called when the stage is done.

DPO has no reward of its own and its section names no judge, so that is asked which is at hand: the gold score of the
embedded world, else the chain's reward model (rm, else pmp), which learnt from comparisons too, as the words say. Where
there is neither, the replies stand side by side without a verdict; `align eval` asks any other judge.

`replies.jsonl` has a line for each of `eval_num_replies` prompts, as `align.stages.policy_evaluation` writes them to
`eval.jsonl` of other stages; that of dpo has pairs.
"""

from __future__ import annotations

from align.data.load import train_and_heldout
from align.evaluation.samples import fitting_prompts
from align.recipe import Recipe
from align.recipe.lineage import Origin, has_model, init_origin, stage_dir
from align.recipe.registry import REWARD_STAGES
from align.recipe.rollout_section import EvaluationSection, RolloutSection
from align.runs.errors import TrainingError
from align.runtime.ranks import agree, of_first
from align.stages import common, policy_evaluation
from align.stages.common import Summary
from align.stages.distance import reply_kl
from align.stages.heldout_replies import Judgements, replies_of
from align.stages.judges import judge_of, model_name
from align.stages.policy_evaluation import Contest
from align.stages.run_dpo import encode, prompts_of
from data_formats.records import Comparison, Prompt
from reward.protocol import Reward


def evaluate_dpo(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """Wins and scores before and after as far as somebody judges, and `kl`, nats a reply; nothing without held-out
    pairs or with `eval_num_replies: 0`. What the summary says of pairs already (`correct`, `by_category`, …) is not
    said of replies under the same names."""
    section, out_dir = getattr(recipe, stage), stage_dir(recipe, stage)
    if not (summary.get("pairs") and section.eval_num_replies):
        return {}
    from align.models.tokenizer import recipe_tokenizer

    start, end = common.origin_path(recipe, init_origin(recipe, stage), stage=stage), str(out_dir / "model")
    tokenizer = recipe_tokenizer(start, recipe.model)
    _, heldout, _ = encode(tokenizer, train_and_heldout(section, Comparison, recipe)[1], section)
    prompts = fitting_prompts(tokenizer, prompts_of(heldout, section.eval_num_replies), section.max_length)
    if not prompts:
        return {}
    learnt = agree(lambda: chain_reward(recipe, stage, section.eval_batch_size), TrainingError)
    rewards = [*policy_evaluation.gold_rewards(recipe), *learnt]
    policies = {name: replies(recipe, stage, path, prompts, rewards) for name, path in (("sft", start), (stage, end))}
    policy_evaluation.write_judgements(out_dir / "replies.jsonl", prompts, policies)
    kl = reply_kl(recipe, start, end, prompts, policies[stage]["sampled"], section.eval_batch_size)
    found = of_first(lambda: compared(recipe, stage, start, prompts, policies, rewards), TrainingError)
    rows = [*found.pop("headline", []), ("KL from where it started, nats a reply", None, kl)]
    new = {name: one for name, one in found.items() if name.removesuffix("_sampled") not in summary}
    return new | {"kl": kl, "headline": rows}


def chain_reward(recipe: Recipe, stage: str, batch_size: int) -> list[Reward]:
    """The newest reward model of the chain under its stage's name; none where it is not there."""
    from align.models.load import load_options
    from reward.sources import load_reward

    there = (name for name in reversed(REWARD_STAGES) if getattr(recipe, name) is not None and has_model(recipe, name))
    if (name := next(there, None)) is None:
        return []
    path, device = common.origin_path(recipe, Origin("stage", name), stage=stage), common.device()
    return [load_reward(path, batch_size=batch_size, name=name, device=device, **load_options(path, recipe.model))]


def replies(recipe: Recipe, stage: str, path: str, prompts: list[Prompt], rewards: list[Reward]) -> Judgements:
    """Of the model at `path`, decoded as every policy is where policies are compared."""
    section = getattr(recipe, stage)
    rollout = RolloutSection(
        max_prompt_length=section.max_length,
        max_completion_length=section.max_completion_length,
        batch_size=section.eval_batch_size,
    )
    samples = EvaluationSection().num_samples
    return replies_of(recipe, path, prompts, rewards, rollout, samples)


def compared(
    recipe: Recipe,
    stage: str,
    start: str,
    prompts: list[Prompt],
    policies: dict[str, Judgements],
    rewards: list[Reward],
) -> Summary:
    """Who won and the scores, by the first reward; without one how many replies end."""
    before, after = policies.values()
    if not rewards:
        return policy_evaluation.figures(after, "")
    judge = judge_of(recipe, stage, rewards[0])
    won = policy_evaluation.winners(prompts, before, after, judge)
    contest = Contest(model_name(start), stage, judge)
    return policy_evaluation.comparison(prompts, before, after, won, contest, rewards[0].name)
