"""A language model as judge, behind an OpenAI-compatible endpoint: asked about each pair in both orders.

    … "choices": [{"message": {"content": "… [[A]]"}, …}] …

A model may prefer what it reads first. So a reply wins only where both orders say so, and where they disagree it is a
tie, which is counted. How it is asked, and what becomes of its answers, is in `reward.language_model`
and `reward.answers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runtime.errors import MissingFileError
from align.runtime.json_files import RunFileError, read_text
from align.runtime.paths import typed_path
from align.runtime.terminal import shortened
from reward.answers import KeptAnswer, Usage
from reward.judges.protocol import ALIKE, Judgment, ReplyPair, Winner
from reward.judges.question import RUBRIC, JudgeQuestion
from reward.language_model import LanguageModel

NOTE = 300  # characters of an answer that a judgment quotes
_THERE: dict[str, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_BACK: dict[str, Winner] = {"A": "second", "B": "first", "tie": "tie"}


@dataclass(slots=True)
class JudgeUsage(Usage):
    """What was asked so far of this judge; `unread`: answers without a verdict.

    Attributes:
        disagreed: pairs on which the two orders disagree.
    """

    disagreed: int = 0


class LLMJudge:
    """Both orders are asked; where they disagree it is a tie, and where one of them gave no verdict there is none.

    Args:
        url, model: the endpoint, and what it calls the model.
        rubric: a text file with what makes a reply better, in place of `reward.judges.question.RUBRIC`.
        name: under which figures stand; default: `llm`.
        described: what follows "judged by"; default: "the language model MODEL".
        options: see `reward.language_model.LanguageModel` (`api_key_env`, `cache`, `seed`, `parameters`, …).

    Attributes:
        usage: what was asked so far, for reports.

    Raises:
        ValueError: an address or a parameter that the endpoint refuses.
        MissingFileError, RunFileError: no such rubric, or one that holds no text.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        rubric: str | Path | None = None,
        name: str = "llm",
        described: str = "",
        **options: Any,
    ):
        self.name, self.described = name, described or f"the language model {model}"
        self.usage = JudgeUsage()
        self._model = LanguageModel(f"judge {name!r}", url, model, usage=self.usage, **options)
        self._rubric = RUBRIC if rubric is None else rubric_in(rubric, f"judge {name!r}")

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """One judgment a pair.

        Raises:
            RewardError: the endpoint is not to be had (wrong key, no such model, no connection after all attempts), or
                refuses more than a quarter of the questions. Answers that came are kept.
        """
        asked = [None if pair.alike else self._both_orders(pair) for pair in pairs]
        answers = self._model.answers([question for both in asked if both for question in both])
        return [[ALIKE if both is None else self._judgment(*both, answers)] for both in asked]

    def _both_orders(self, pair: ReplyPair) -> tuple[JudgeQuestion, JudgeQuestion]:
        orders = ((pair.first, pair.second), (pair.second, pair.first))
        model = self._model
        there, back = (JudgeQuestion.of(*order, self._rubric, model.options, model.asked_at) for order in orders)
        return there, back

    def _judgment(self, there: JudgeQuestion, back: JudgeQuestion, found: Mapping[str, KeptAnswer | str]) -> Judgment:
        answers = []
        for question in (there, back):
            answer = found[question.key]
            if isinstance(answer, str):
                return Judgment(None, note=answer)
            answers.append(answer)
        said = [
            None if answer.ended == "length" else question.verdict(answer.text)
            for question, answer in zip((there, back), answers, strict=True)
        ]
        self.usage.unread += said.count(None)
        for verdict, answer in zip(said, answers, strict=True):
            if verdict is None:
                what = "was cut at its limit of tokens" if answer.ended == "length" else "holds no verdict"
                return Judgment(None, note=f"the answer {what}: {shortened(answer.text, NOTE) or 'it is empty'}")
        first, second = _THERE[said[0]], _BACK[said[1]]
        if first == second:
            return Judgment(first, note=shortened(answers[0].text, NOTE))
        self.usage.disagreed += 1
        return Judgment("tie", note=f"{first} when asked in this order, {second} when asked in the other")


def rubric_in(file: str | Path, called: str) -> str:
    """The text of a user's rubric; `called` is the subject of the errors.

    Raises:
        MissingFileError, RunFileError: no such file, or one that holds no text.
    """
    path = typed_path(file)
    if not path.is_file():
        raise MissingFileError(f"{called}: no such rubric {path}")
    text = read_text(path)
    if not text.strip():
        raise RunFileError(f"{called}: the rubric {path} is empty; write what makes a reply better, or leave it out")
    return text
