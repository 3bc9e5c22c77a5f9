"""Items and judgments for tests."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from align.feedback.items import FeedbackItem, FeedbackReply
from align.feedback.judgments import HumanJudgment
from data_formats.records import Message


def item(name: str, *texts: str, **options: Any) -> FeedbackItem:
    """Replies r0, r1, … of the sources s0, s1, …."""
    replies = tuple(FeedbackReply(f"r{at}", text, f"s{at}", {"temperature": at}) for at, text in enumerate(texts))
    return FeedbackItem(name, (Message("user", f"ask {name}"),), replies, **options)


def judgment(on: str, who: str, ranking: Sequence[Sequence[str]], strength: str | None = None, **options: Any):
    """Shown in the order of their names where nothing else is said."""
    shown = sorted(name for rank in ranking for name in rank)
    ranks = tuple(map(tuple, ranking))
    given = {"id": str(uuid.uuid4()), "shown": shown, "ranking": ranks, "strength": strength} | options
    return HumanJudgment(item=on, annotator=who, **given)
