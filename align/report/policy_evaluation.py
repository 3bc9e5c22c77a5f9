"""`ppo/eval.jsonl`: which policy's reply was judged better, prompt by prompt; counted by category.

A line holds `sft_reply`, `ppo_reply` and scores of each (`sft_gold`, `ppo_gold`, `sft_reward`, …), and maybe `sampled`
replies of both. The judge is the one that the summary names, else the gold score, else whatever scored both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.runs.run_files import Row, Run, StageFiles, clean, number

BEFORE, AFTER = "sft", "ppo"
NO_CATEGORY = "(no category)"
REWARD = "reward"
_NO_SCORES = ("reply", "finished", "tokens", "correct", "category")


@dataclass(slots=True)
class Counts:
    """Replies of the later policy that were judged better, equal and worse, and the mean scores of both."""

    win: int = 0
    tie: int = 0
    loss: int = 0
    before: float = 0.0
    after: float = 0.0

    @property
    def total(self) -> int:
        return self.win + self.tie + self.loss

    @property
    def decided(self) -> float | None:
        """Share of wins among the pairs that are no ties."""
        return self.win / (self.win + self.loss) if self.win + self.loss else None

    def add(self, before: float, after: float) -> None:
        """Count one pair of replies."""
        seen = self.total
        self.before += (before - self.before) / (seen + 1)
        self.after += (after - self.after) / (seen + 1)
        self.win, self.tie, self.loss = (
            self.win + (after > before),
            self.tie + (after == before),
            self.loss + (after < before),
        )


def judge_of(stage: StageFiles) -> str | None:
    """The score that decides: `<name>` of `sft_<name>` and `ppo_<name>`; None when none scored both."""
    shared = [name for name in _scored_names(stage.evals) if name not in _NO_SCORES]
    wanted = [name for name in (stage.summary.get("judge"), "gold", REWARD) if name in shared]
    return (wanted or shared or [None])[0]


def _scored_names(rows: list[Row]) -> list[str]:
    names = {
        key.removeprefix(f"{BEFORE}_")
        for row in rows
        for key in row
        if key.startswith(f"{BEFORE}_") and number(row[key]) is not None
    }
    return sorted(name for name in names if any(number(row.get(f"{AFTER}_{name}")) is not None for row in rows))


def by_category(stage: StageFiles) -> dict[str, dict[str, Counts]]:
    """Decoding (`greedy`, `temperature 1`) -> category -> counts; "all" comes first. Empty without a judge."""
    judge = judge_of(stage)
    found: dict[str, dict[str, Counts]] = {}
    for row in stage.evals if judge is not None else []:
        category = clean(row.get("category"), 60) or NO_CATEGORY
        for decoding, before, after in _pairs(row, judge):
            table = found.setdefault(decoding, {"all": Counts()})
            table["all"].add(before, after)
            if category != "all":
                table.setdefault(category, Counts()).add(before, after)
    return {
        decoding: {name: table[name] for name in ("all", *sorted(set(table) - {"all"}))}
        for decoding, table in found.items()
    }


def _pairs(row: Row, judge: str) -> Iterator[tuple[str, float, float]]:
    before, after = (number(row.get(f"{name}_{judge}")) for name in (BEFORE, AFTER))
    if before is not None and after is not None:
        yield "greedy", before, after
    sampled = row.get("sampled")
    sides = [sampled.get(name) for name in (BEFORE, AFTER)] if isinstance(sampled, dict) else []
    if all(isinstance(side, list) for side in sides):
        for one, other in zip(*sides, strict=False):
            pair = [number(reply.get(judge)) if isinstance(reply, dict) else None for reply in (one, other)]
            if None not in pair:
                yield "temperature 1", *pair


def starting_policy(run: Run) -> str:
    """What PPO's policy was before: rejection sampling's model where ppo started from it, else the SFT model."""
    origins = run.stages["ppo"].summary.get("origins")
    policy = origins.get("policy") if isinstance(origins, dict) else None
    return "RS" if isinstance(policy, dict) and policy.get("value") == "rejection" else "SFT"
