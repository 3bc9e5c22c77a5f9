"""What the rounds brought: each round's policy against the one before and the first, and what its reward model knows of
the policy's own replies.

The held-out prompts of `rounds.eval_data`, where there are any, are answered by the first policy and by that of every
round, greedily and twice at temperature 1. The judge of the rounds, unless people are, says whose greedy reply is
better, and which of two sampled replies of one policy; a gold score, where there is one, says so too.
`<output_dir>/evaluation` keeps replies and judgments: what is there is not made again, what is of another model or
judge is.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from align.chat.batch import replies_of_model
from align.data.encode import encode_prompts
from align.data.load import load_records
from align.data.replies import PromptedReply
from align.evaluation.compare import paired_difference
from align.evaluation.contest import judged_rows, matches
from align.evaluation.own_replies import accuracy_on_own, change, due
from align.evaluation.scoring import best_device, judge_replies
from align.evaluation.wins import win_rates
from align.models.tokenizer import load_saved_tokenizer
from align.recipe import Recipe
from align.recipe.registry import STAGES
from align.recipe.rounds import comparisons_of, policy_after, round_dir, round_stages
from align.recipe.sources import COLLECT, ROUNDS
from align.report.rounds import rounds_table
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.json_files import Row, read_object, read_objects
from align.runtime.made import MadeWith
from align.runtime.table import table
from align.runtime.terminal import say
from align.serving.named import named_reward
from align.stages.judges import recipe_judge
from align.stages.policy_evaluation import gold_rewards
from align.stages.rewards import build_reward
from data_formats.errors import EmptyDatasetError
from data_formats.records import Prompt
from reward.judges.protocol import Judge
from reward.judges.rewards import RewardJudge
from reward.protocol import Reward, prompt_columns
from rollouts.protocol import SamplingParams

EVALUATION, START = "evaluation", "start"
ADVICE = "remove it, and the same command makes it again"


def evaluate_round(recipe: Recipe, number: int) -> Row:
    """The figures of a round, or of the policy that the first one starts from (0).

    Returns:
        `round` and `policy`; with a judge or a gold score by its name under `wins` those against the round `before` and
        against the `start` (`align.evaluation.wins.win_rates`), under `rm_on_own` the reward model's accuracy on pairs
        of the last policy's replies (`before`) and of this one's (`after`, `align.evaluation.own_replies`), their
        `change`, and `due`, a sentence or ""; `gold` and its parts, means over greedy replies, `gold_gain` of each
        round; `comparisons` of this round and `all_comparisons`; `rm`, what the reward model's stage found on
        held-out pairs.
    """
    evaluation = RoundEvaluation(recipe)
    file = evaluation.folder / f"{name_of(number)}.json"
    evaluation.made.require(file, evaluation.settings(number))
    found = read_object(file, ADVICE)
    if found is None:
        found = evaluation.figures(number)
        files.write_json(file, found)
    return found


def judge_of_rounds(recipe: Recipe, folder: Path) -> Judge:
    """The judge that is no people; answers of a language model are kept in `folder`."""
    tokenizer = load_saved_tokenizer(policy_after(recipe, 0))
    judge = recipe_judge(recipe, tokenizer, stage=ROUNDS, out_dir=folder, device=best_device())
    assert judge is not None
    return judge


def trained_on(recipe: Recipe) -> str:
    """A sentence where held-out prompts are among those that rounds collect for or sample to, else ""."""
    keys = [COLLECT, *(stage for stage in round_stages(recipe) if STAGES[stage].records == "Prompt")]
    if not recipe.rounds.eval_data:
        return ""
    heldout = {one.messages for one in load_records(recipe.rounds.eval_data, Prompt, recipe)[0]}
    seen = {key: load_records(getattr(recipe, key).data, Prompt, recipe)[0] for key in keys}
    counts = {key: len(heldout & {one.messages for one in prompts}) for key, prompts in seen.items()}
    found = ", ".join(f"{count} in {key}.data" for key, count in counts.items() if count)
    told = f"rounds.eval_data: of {len(heldout)} prompts {found}: what they are learnt on does not tell of new ones"
    return told if found else ""


def name_of(number: int) -> str:
    """What the policy of a round is called."""
    return f"round-{number}" if number else START


class RoundEvaluation:
    """The replies of the rounds' policies and who judges them; what can be held in files is."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.folder = recipe, Path(recipe.output_dir) / EVALUATION
        self.made = MadeWith(self.folder)
        longest = recipe.collect.max_completion_length
        seed = derive(recipe.seed, ROUNDS, EVALUATION)
        self.ways = {
            "greedy": SamplingParams(temperature=0.0, max_new_tokens=longest, seed=seed),
            "sampled": SamplingParams(n=2, temperature=1.0, max_new_tokens=longest, seed=seed),
        }

    @cached_property
    def tokenizer(self) -> Any:
        return load_saved_tokenizer(policy_after(self.recipe, 0))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The held-out prompts that are short enough, each once; none where the recipe names none."""
        if not self.recipe.rounds.eval_data:
            return []
        read, _ = load_records(self.recipe.rounds.eval_data, Prompt, self.recipe)
        prompts = list({(one.messages, one.tools): one for one in reversed(read)}.values())[::-1]
        ids = encode_prompts(self.tokenizer, [one.messages for one in prompts], [one.tools for one in prompts])
        most = self.recipe.collect.max_prompt_length
        found = [one for one, own in zip(prompts, ids, strict=True) if len(own) <= most]
        if not found:
            told = f"rounds.eval_data: no prompt of at most collect.max_prompt_length ({most}) tokens; raise it"
            raise EmptyDatasetError(told)
        return found

    @cached_property
    def gold(self) -> list[Reward]:
        """What nothing is trained on: the embedded world's score, or ppo's `gold_reward`."""
        if self.recipe.tinyworld is None and self.recipe.ppo is not None and self.recipe.ppo.gold_reward:
            how = {"stage": "ppo", "key": "gold_reward", "name": "gold", "device": best_device()}
            return [build_reward(self.recipe, self.tokenizer, **how)]
        return gold_rewards(self.recipe)[:2]

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Who compares, by name."""
        found: dict[str, Judge] = {}
        if not self.recipe.rounds.by_people:
            found["judge"] = judge_of_rounds(self.recipe, self.folder)
        return found | ({"gold": RewardJudge(self.gold[0])} if self.gold else {})

    @cached_property
    def about(self) -> Row:
        """What the figures of every round depend on."""
        ppo = self.recipe.ppo.model_dump(mode="json")["gold_reward"] if self.recipe.ppo is not None else []
        return {
            "prompts": hashlib.sha256(repr(self.prompts).encode(errors="surrogatepass")).hexdigest()[:16],
            "sampling": {way: asdict(params) for way, params in self.ways.items()},
            "judge": self.recipe.rounds.model_dump(mode="json")["judge"],
            "gold": ppo,
        }

    def settings(self, number: int) -> Row:
        """What a round's figures depend on."""
        policies = sorted({0, max(number - 1, 0), number})
        of_policies = {name_of(one): files.stamp(policy_after(self.recipe, one)) for one in policies}
        reward = files.stamp(self.reward_model(number)) if self.has_reward_model(number) else []
        return self.about | of_policies | {"reward": reward, "comparisons": self.comparisons(number)}

    def reward_model(self, number: int) -> Path:
        return round_dir(self.recipe, number) / "rm" / "model"

    def has_reward_model(self, number: int) -> bool:
        return number > 0 and self.recipe.rm is not None

    def comparisons(self, number: int) -> list[int]:
        """How many were judged in each round up to this one."""
        return [len(read_objects(comparisons_of(self.recipe, one), ADVICE)) for one in range(1, number + 1)]

    def figures(self, number: int) -> Row:
        """As of `evaluate_round`."""
        found: Row = {"round": number, "policy": policy_after(self.recipe, number)}
        if number:
            counts = self.comparisons(number)
            found |= {"comparisons": counts[-1], "all_comparisons": sum(counts)}
        if self.has_reward_model(number):
            summary = read_object(self.reward_model(number).parent / "summary.json", ADVICE) or {}
            shown = ("accuracy", "accuracy_low", "accuracy_high", "pairs")
            found["rm"] = {name: summary[name] for name in shown if name in summary}
        if self.prompts and self.judges:
            found |= {"wins": self.wins(number)} if number else {}
            found |= {"rm_on_own": self.rm_on_own(number)} if self.has_reward_model(number) else {}
            found |= self.gold_figures(number)
        return found

    def replies(self, number: int, way: str) -> list[list[str]]:
        """The replies of a round's policy, of each prompt `n`."""
        name, path = name_of(number), policy_after(self.recipe, number)
        file, params = self.folder / "replies" / f"{name}.{way}.jsonl", self.ways[way]
        about = {"its files": files.stamp(path), "prompts": self.about["prompts"], "sampling": asdict(params)}
        self.made.require(file, about)
        return replies_of_model(path, name, params, self.prompts, file, engine=self.recipe.collect.engine)

    def _judged(self, who: str, replies: dict[str, list[list[str]]], name: str) -> list[Row]:
        kept = self.folder / "judgments" / f"{who}.{name}.jsonl"
        self.made.require(kept, {key: self.about[key] for key in ("prompts", "judge", "gold")})
        return judged_rows(self.judges[who], self.prompts, replies, kept)

    def wins(self, number: int) -> Row:
        """By each judge, against the round before and against the first policy."""
        found: Row = {}
        for who, judge in self.judges.items():
            found[who] = {}
            for what, other in (("before", number - 1), ("start", 0)):
                names = (name_of(other), name_of(number))
                sides = {name: self.replies(one, "greedy") for name, one in zip(names, (other, number), strict=True)}
                rows = self._judged(who, sides, "-".join(names))
                pairs = matches(rows)[names]
                found[who][what] = win_rates(pairs, judged_by=judge.described, first=names[0], second=names[1])
        return found

    def gold_figures(self, number: int) -> Row:
        """Mean gold scores of greedy replies, and the gain of the first kind over the round before."""
        now = {one.name: self._scored(one, self.replies(number, "greedy")) for one in self.gold}
        found: Row = {name: fmean(score for row in rows for score in row) for name, rows in now.items()}
        if number and self.gold:
            before = self._scored(self.gold[0], self.replies(number - 1, "greedy"))
            found["gold_gain"] = paired_difference(before, now[self.gold[0].name])
        return found

    def _scored(self, reward: Reward, replies: Sequence[Sequence[str]]) -> list[list[float]]:
        given = [
            PromptedReply(prompt.messages, text, prompt.tools, prompt_columns(prompt))
            for prompt, own in zip(self.prompts, replies, strict=True)
            for text in own
        ]
        scores = iter(judge_replies(reward, given)[0].scores)
        return [[next(scores) for _ in own] for own in replies]

    def rm_on_own(self, number: int) -> Row:
        """By each judge: of pairs of the policy's replies before and after the round."""
        found: Row = {}
        reward = named_reward(str(self.reward_model(number)), device=best_device()).reward
        margins = {}
        for one in (number - 1, number):
            scores = self._scored(reward, self.replies(one, "sampled"))
            margins[one] = [first - second for first, second in scores]
        for who in self.judges:
            parts = {"before": self._accuracy(who, number - 1, margins), "after": self._accuracy(who, number, margins)}
            moved = change(parts["before"], parts["after"]) if all(parts.values()) else None
            found[who] = parts | {"change": moved, "due": due(parts["before"], parts["after"])}
        return found

    def _accuracy(self, who: str, number: int, margins: dict[int, list[float]]) -> Row | None:
        sampled = self.replies(number, "sampled")
        sides = {side: [[own[at]] for own in sampled] for at, side in enumerate(("first", "second"))}
        rows = self._judged(who, sides, f"own.{name_of(number)}")
        said = [(row["prompt"], one["winner"]) for row in rows for one in row["judgments"]]
        prompts, winners = [prompt for prompt, _ in said], [winner for _, winner in said]
        return accuracy_on_own(prompts, winners, [margins[number][prompt] for prompt in prompts])


def print_rounds(recipe: Recipe, rows: Sequence[Row]) -> None:
    """One table over the rounds, and whether another one is due."""
    found = rounds_table(list(rows))
    if found is None:
        return
    say(f"\n{recipe.name}, seed {recipe.seed}: what the rounds came to on held-out prompts\n")
    say(table(found.header, [line.cells for line in found.lines]))
    for sentence in found.lines[-1].due:
        say(f"\n{sentence}")
    say(f"\nThe newest policy: {shlex.join(['align', 'chat', recipe.output_dir])}", flush=True)
