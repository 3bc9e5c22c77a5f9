"""People as judge: replies that annotators ranked, looked up.

Every annotator's ranking is a judgment of its own: none is made of several by a vote, so that a table over rankings is
pooled as in the Qwen report (Fig. 4: 290 prompts by 3 annotators are 870 judgments).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from align.runtime.paths import typed_path
from data_formats.rankings import Ranking, read_rankings
from data_formats.records import Message
from reward.judges.protocol import Judgment, ReplyPair
from reward.protocol import Sample

Turns = tuple[Message, ...]


class RankingsJudge:
    """Rankings of a file (`data_formats.rankings` says in which shapes): a judgment an annotator, no majority.

    A pair is looked up by its prompt and the texts of its replies; a reply that the file has no text of, by its model
    (`ReplyPair.models`). Where the file has no system turn, that of the pair does not matter. What nobody ranked has no
    judgment.

    Args:
        path: the file (CSV, TSV, JSON, JSON Lines or Parquet).
        name: default: the file's name without its endings.
        described: what follows "judged by"; default: "3 annotators of votes.csv".

    Attributes:
        models: whose replies are ranked, in the file's order.
        left_out: how many rows or replies of the file were left out, by reason.

    Raises:
        MissingFileError, DataError: no such file, or a row that cannot be read; names file, row and field.
    """

    def __init__(self, path: str | Path, *, name: str = "", described: str = ""):
        path = typed_path(path)
        read = read_rankings(path)
        self.left_out = read.left_out
        self.models = tuple(dict.fromkeys(reply.model for one in read.rankings for reply in one.replies if reply.model))
        self._by_prompt: dict[tuple[tuple[str, str], ...], list[Ranking]] = {}
        for ranking in read.rankings:
            self._by_prompt.setdefault(_asked(ranking.prompt), []).append(ranking)
        who = {ranking.annotator for ranking in read.rankings}
        people = f"{len(who)} annotator{'s' if len(who) > 1 else ''}" if who != {""} else "the rankings"
        self.name = name or re.sub(r"[^\w.-]+", "_", path.name.partition(".")[0]) or "rankings"
        self.described = described or f"{people} of {path.name}"

    def pairs(self, first: str, second: str) -> list[ReplyPair]:
        """A pair for every prompt on which somebody ranked both models, to compare them as they were ranked.

        The replies are those of the file, empty where it holds none; `columns` have the prompt's category.
        """
        found: dict[tuple[Turns, str | None, str | None], ReplyPair] = {}
        for ranking in (one for some in self._by_prompt.values() for one in some):
            texts = {reply.model: reply.text for reply in ranking.replies}
            if first in texts and second in texts:
                sides = (
                    Sample(ranking.prompt, texts[model] or "", columns={"category": ranking.category})
                    for model in (first, second)
                )
                key = (ranking.prompt, texts[first], texts[second])
                found.setdefault(key, ReplyPair(*sides, models=(first, second)))
        return list(found.values())

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """A judgment an annotator who ranked both replies, in the file's order; ties in ranks are ties."""
        return [self._judgments(pair) for pair in pairs]

    def _judgments(self, pair: ReplyPair) -> list[Judgment]:
        judgments = []
        for ranking in self._by_prompt.get(_asked(pair.first.prompt), ()):
            if _system(ranking.prompt) not in (None, _system(pair.first.prompt)):
                continue
            first = _rank(ranking, pair.first.completion, pair.models[0])
            second = _rank(ranking, pair.second.completion, pair.models[1])
            if first is not None and second is not None:
                winner = "tie" if first == second else "first" if first < second else "second"
                judgments.append(Judgment(winner, by=ranking.annotator))
        return judgments


def _asked(prompt: Turns) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.content.strip()) for turn in prompt if turn.role != "system")


def _system(prompt: Turns) -> str | None:
    return next((turn.content.strip() for turn in prompt if turn.role == "system"), None)


def _rank(ranking: Ranking, text: str, model: str) -> float | None:
    """The rank of a reply; None where it is not ranked, or where two that say it are ranked differently."""
    found = [
        reply
        for reply in ranking.replies
        if (reply.text.strip() == text.strip() if reply.text is not None else model and reply.model == model)
    ]
    ranks = {reply.rank for reply in [one for one in found if one.model == model] or found}
    return ranks.pop() if len(ranks) == 1 else None
