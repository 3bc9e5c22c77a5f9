"""What the page calls things: the two policies, the reward that one is trained on, and who judged.

Names come from the recipe and the summary that a run left, which may be of an older version: what they do not tell is
not claimed.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from align.runs.run_files import Row, Run, StageFiles, clean, number

STAGE_NAMES = {"base": "Base", "sft": "SFT", "pmp": "PMP", "rm": "RM", "rejection": "RS"}
STAGE_NAMES |= {"dpo": "DPO", "ppo": "PPO"}
REWARD, GOLD, WATCHED = (
    "reward",
    "gold",
    "gold_reward",
)  # judges of `eval.jsonl`: what is trained on, the world's, ppo's
WORDS = {"model": "reward model", "http": "reward endpoint", "gate": "gated reward"}
PART = re.compile(r"score/(.+)/mean")  # of `metrics.jsonl`: a part of a composed reward


def stage_name(stage: str) -> str:
    """PPO for `ppo`; a stage without a name of its own is called as it is."""
    return STAGE_NAMES.get(stage, stage)


def starting_policy(stage: StageFiles) -> str:
    """What a stage's policy was before: the stage that it started from, also by the path of its model (`a/sft/model`),
    or the last part of another path or hub id."""
    origins = stage.summary.get("origins")
    origin = origins.get("policy") if isinstance(origins, dict) else stage.summary.get("origin")
    value = clean(origin.get("value"), 200) if isinstance(origin, dict) else ""
    if not value:
        return STAGE_NAMES["sft"]
    place = PurePath(value)
    return stage_name((place.parent if place.name == "model" else place).name or value)


def reward_named(section: Row, summary: Row) -> str:
    """The reward that a stage is trained on, after its section of the recipe (plain values, `{}` where none is left):
    `reward model`, `rule gsm8k`, `reward function f`, `sum of a and b`, and `reward` where nothing tells."""
    parts = _parts(section.get("reward"))
    if len(parts) > 1:
        names = [clean(part.get("name") or part.get("kind"), 40) for part in parts]
        return f"sum of {', '.join(names[:-1])} and {names[-1]}"
    if parts:
        return _part_named(parts[0])
    origins = summary.get("origins")
    known = bool(section) or (isinstance(origins, dict) and REWARD in origins)
    return WORDS["model"] if known else "reward"


def _parts(value: object) -> list[Row]:
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]


def _part_named(part: Row) -> str:
    kind, name = clean(part.get("kind"), 40), clean(part.get("name"), 40)
    if kind == "function":
        return f"reward function {name or clean(part.get('function'), 200).rpartition(':')[2]}"
    words = WORDS.get(kind)
    if words is None:
        return f"rule {name or kind}"
    return f"{words} {name}" if name else words


def section_of(run: Run, stage: str) -> Row:
    """The values of a stage's section of the recipe, `{}` where none is left."""
    section = run.recipe.get(stage)
    return section if isinstance(section, dict) else {}


def judge_of(stage: StageFiles) -> str | None:
    """The score that decides: `<name>` of `sft_<name>` and `ppo_<name>` in `eval.jsonl`, the one that the summary names
    before others; None where none scored both."""
    shared = [name for name in scored_names(stage) if name not in ("tokens", "correct")]
    wanted = [name for name in (stage.summary.get("judge"), GOLD, REWARD) if name in shared]
    return (wanted or shared or [None])[0]


def has_verdicts(stage: StageFiles) -> bool:
    """Whether the judge gave verdicts and no scores."""
    return any(isinstance(row.get("verdicts"), dict) for row in stage.of_policies)


def scored_names(stage: StageFiles) -> list[str]:
    """The figures that stand beside the greedy replies of both policies, in order of the alphabet."""
    before, after = "sft_", f"{stage.name}_"
    rows = stage.of_policies
    names = {key.removeprefix(before) for row in rows for key in row if _has(row, key, before)}
    return sorted(names & {key.removeprefix(after) for row in rows for key in row if _has(row, key, after)})


def _has(row: Row, key: str, prefix: str) -> bool:
    return key.startswith(prefix) and number(row[key]) is not None


def judged_by(run: Run, stage: StageFiles) -> str:
    """The words that follow "judged by"; empty where nobody judged."""
    if isinstance(told := stage.summary.get("judged_by"), str) and told.strip():
        return clean(told, 300)
    judge, section = judge_of(stage), section_of(run, stage.name)
    if has_verdicts(stage):
        return f"the judge {clean(stage.summary.get('judge'), 60)}".strip()
    if judge is None:
        return ""
    if judge == GOLD and ("gold_range" in run.summary or run.recipe.get("tinyworld") is not None):
        return "the gold score of the embedded world, which training has not seen"
    if judge == WATCHED:
        named = reward_named({"reward": section.get(WATCHED)}, {}) if section.get(WATCHED) else "reward"
        return f"the {named} of {stage.name}.gold_reward, which does not train the policy"
    if judge == REWARD:
        return f"the {reward_named(section, stage.summary)} that {stage_name(stage.name)} was trained on"
    return f"the score {judge}"
