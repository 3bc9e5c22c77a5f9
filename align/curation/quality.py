"""Quality of rows: the score of a reward model, points that a language model gives by a rubric, or a small classifier.

Llama 3 (2407.21783, section 4.2.3) takes as good what a reward model puts into the top quarter or what Llama gives full
points. Scores are handed on as they are: what the top of a set is, and how quality meets difficulty, says `scale`.

A demonstration is rated by its last reply, a comparison by how much better its chosen reply is than the rejected one,
scored replies as a comparison of the best with the worst (`scorer`). A classifier reads any record as one text.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from align.curation.classified import ClassifierScore
from align.curation.kept import Kept, Numbers, kept_in
from align.curation.rubrics import CODE, DOCUMENT, REPLY, Rubric, asked, shown, with_own_text
from align.curation.scorer import FindModel, RecordScorer, differences, require_kinds
from align.data.replies import PromptedReply
from align.evaluation.scoring import best_device, samples_for
from align.recipe.scorer_sections import ClassifierSection, LLMQualitySection, QualityKind, RewardQualitySection
from align.runtime import files
from data_formats.cleaning.texts import whole_text
from data_formats.records import Document, Record
from reward.failures import MAX_FAILED_SHARE, judge_all
from reward.protocol import Reward

logger = logging.getLogger(__name__)
BLOCK = "```"  # a reply with a block of code is rated as code


def quality_scorer(section: QualityKind, find_model: FindModel, folder: Path | None = None) -> RecordScorer:
    """The scorer that a recipe's section names.

    Args:
        find_model: see `align.curation.scorer`.
        folder: where numbers and answers are kept, so that nothing is rated twice; None: nowhere.

    Raises:
        MissingFileError, ModelFileError: no such model, or a torn one.
        ScorerError: a classifier without that label.
        ValueError: an endpoint's address that is none.
    """
    match section:
        case RewardQualitySection():
            from align.models.named import reward_at
            from reward.sources import load_reward

            path = reward_at(find_model(section.model_from))
            reward = load_reward(path, batch_size=section.batch_size, device=best_device())
            return RewardQuality(reward, kept_in(folder, {"reward": str(path), "files": files.stamp(path)}))
        case LLMQualitySection():
            return LLMQuality(section, folder)
        case ClassifierSection():
            return ClassifierScore.of(section, whole_text)


class RewardQuality:
    """What a reward says of replies; a `RecordScorer`.

    Args:
        reward: any reward (`reward.protocol`).
        kept: where scores are kept.
    """

    def __init__(self, reward: Reward, kept: Kept | None = None):
        self.name, self._reward, self._kept = "reward", reward, kept or Kept(None, {})

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """In the reward's own unit. None: there is no reply, or one that the reward fails on.

        Raises:
            ScorerError: a kind of record without replies.
            RewardError: the reward fails on more than a quarter of a piece, or is not to be had.
            DataError: the model's chat template refuses a conversation.
        """
        require_kinds(records, self.name, RewardQualitySection.rates)
        return differences(records, lambda asked: [one and one[0] for one in self._kept.numbers(asked, self._rate)])

    def _rate(self, replies: Sequence[PromptedReply]) -> list[Numbers]:
        samples = samples_for(self._reward, replies)
        verdict, failures = judge_all(self._reward, samples, "mask", max(1, int(MAX_FAILED_SHARE * len(samples))))
        if failures:
            logger.warning("%d of %d replies have no score: %s", len(failures), len(samples), failures[0])
        return [None if math.isnan(score) else (score,) for score in verdict.scores]


class LLMQuality:
    """The share of a rubric's points that a language model gives, in [0, 1]; a `RecordScorer`.

    Args:
        section: the endpoint, and maybe a rubric of one's own, which then serves replies, code and documents alike.
        folder: where answers are kept.
    """

    def __init__(self, section: LLMQualitySection, folder: Path | None = None):
        self.name = "llm"
        self._rubrics = with_own_text(section.rubric, (REPLY, CODE, DOCUMENT))
        self._askers = {rubric: rubric.asker(section, folder) for rubric in self._rubrics.values()}

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """None: there is no reply, or the answer could not be read, or was refused.

        Raises:
            ScorerError: prompts, which have no reply.
            RewardError: the endpoint is not to be had, refuses more than a quarter, or says nothing that can be read.
        """
        require_kinds(records, self.name, LLMQualitySection.rates)
        documents = [index for index, record in enumerate(records) if isinstance(record, Document)]
        found = differences(records, self._rate)
        texts = [records[index].text for index in documents]
        for index, score in zip(documents, self._ask(DOCUMENT, texts), strict=True):
            found[index] = score
        return found

    def _rate(self, replies: Sequence[PromptedReply]) -> list[float | None]:
        scores: list[float | None] = [None] * len(replies)
        for rubric in (REPLY, CODE):
            at = [index for index, one in enumerate(replies) if (BLOCK in one.reply) is (rubric is CODE)]
            some = [replies[index] for index in at]
            texts = [f"{shown(one.prompt, one.tools)}\n[the reply]\n{one.reply}" for one in some]
            for index, score in zip(at, self._ask(rubric, texts), strict=True):
                scores[index] = score
        return scores

    def _ask(self, rubric: Rubric, texts: Sequence[str]) -> list[float | None]:
        return asked(self._askers[self._rubrics[rubric]], texts) if texts else []
