"""Judgments on collected replies -> comparisons, each with its strength as grade and where it comes from.

A pair of replies becomes a comparison where more than half of those who judged it prefer the same reply; a tie and "all
are bad" count as what they are, a vote for neither. Without the vote every judgment counts alone (as in the Qwen
report's figure 4), and what annotators contradict each other in stands there both ways. A comparison's grade is that of
its preferring judgments, the lower middle one of several: a number of the four-step scale, which the margins of Llama 2
are made for. As in Llama 3 (section 4.2.1) a reply that was rewritten stands above the one it was made of and whatever
that one was found better than. A reply that anybody flagged as unsafe is never the chosen one. What gives no comparison
is counted by its reason.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from align.feedback.items import FeedbackItem, FeedbackReply
from align.feedback.judgments import GRADES, STRENGTHS, HumanJudgment
from align.feedback.provenance import Provenance, Written
from align.feedback.votes import Judged, Vote, votes_of
from data_formats.records import Comparison

Voting = Literal["majority", "all"]
Pairing = Literal["all", "best"]
EDITED, UNSAFE = "edited", "rejected_unsafe"  # tags of a comparison; the second as of PKU-SafeRLHF's pairs


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """What of the judgments becomes a comparison.

    Attributes:
        votes: `majority`: a pair once, as more than half say; `all`: once a judgment, as it says.
        pairs: `all` pairs of ranks, or each `best` reply, which none was found better than, against the others.
        min_strength: leave out pairs whose strength is known to be less; an edited reply's over its original is not.
        all_bad: also what is said of the order of replies all of which are called bad.
    """

    votes: Voting = "majority"
    pairs: Pairing = "all"
    min_strength: str | None = None
    all_bad: bool = False

    def __post_init__(self) -> None:
        for name, known in (("votes", get_args(Voting)), ("pairs", get_args(Pairing))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.min_strength not in (None, *STRENGTHS):
            raise ValueError(f"min_strength must be one of {', '.join(STRENGTHS)}, not {self.min_strength!r}")


@dataclass(slots=True)
class MergedJudgments:
    """The comparisons in the items' order, and how many pairs of replies gave none, by reason."""

    comparisons: list[Comparison] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Preference:
    """`better` over `worse`, by everybody who judged the two."""

    better: FeedbackReply
    worse: FeedbackReply
    grade: int | None
    provenance: Provenance
    unsafe: tuple[str, ...] = ()

    @property
    def edited(self) -> bool:
        return bool(self.provenance.chosen.edited_by)


def merge(judged: Sequence[Judged], options: MergeOptions | None = None) -> MergedJudgments:
    """The comparisons that judgments come to.

    Args:
        judged: each judgment that counts with its item (`align.feedback.votes.matched`).
    """
    options, merged = options or MergeOptions(), MergedJudgments()
    by_item: dict[str, list[HumanJudgment]] = defaultdict(list)
    for item, judgment in judged:
        by_item[item.id].append(judgment)
    for item in {item.id: item for item, _ in judged}.values():
        own = by_item[item.id]
        unsafe = {name for judgment in own for name in judgment.unsafe}
        for together in [own] if options.votes == "majority" else [[one] for one in own]:
            merged.comparisons += _comparisons(item, together, unsafe, options, merged.left_out)
    merged.left_out = +merged.left_out
    return merged


def _comparisons(
    item: FeedbackItem,
    judgments: Sequence[HumanJudgment],
    unsafe: set[str],
    options: MergeOptions,
    left_out: Counter[str],
) -> Iterator[Comparison]:
    """What judgments that vote together come to."""
    voted = list(_voted(item, judgments, options, left_out))
    safe = [one for one in voted if one.better.id not in unsafe]
    left_out["the better reply is flagged as unsafe"] += len(voted) - len(safe)
    beaten = {one.worse.id for one in safe}
    best = [one for one in safe if options.pairs == "all" or one.better.id not in beaten]
    left_out["the better reply is not the best"] += len(safe) - len(best)
    least = 0 if options.min_strength is None else GRADES[options.min_strength]
    for one in (*_edited(item, judgments, voted, unsafe, left_out), *best):
        better, worse = one.better.reply.strip(), one.worse.reply.strip()
        if one.grade is not None and one.grade < least:
            left_out[f"less than {options.min_strength}"] += 1
        elif not better or not worse:
            left_out["an empty reply"] += 1
        elif better == worse:
            left_out["both replies are the same"] += 1
        else:
            yield Comparison(
                item.prompt,
                one.better.reply,
                one.worse.reply,
                grade=None if one.grade is None else float(one.grade),
                category=item.category,
                tags=(*item.tags, *[EDITED] * one.edited, *[UNSAFE] * (one.worse.id in unsafe)),
                tools=item.tools,
                round=item.round,
                provenance=one.provenance.as_object(),
            )


def _voted(
    item: FeedbackItem, judgments: Sequence[HumanJudgment], options: MergeOptions, left_out: Counter[str]
) -> Iterator[_Preference]:
    """The pairs on which more than half are of one mind."""
    by_pair: dict[tuple[str, str, str], list[Vote]] = defaultdict(list)
    for vote in (vote for judgment in judgments for vote in votes_of(item, judgment)):
        by_pair[vote.pair].append(vote)
    for votes in by_pair.values():
        who: dict[str | None, list[Vote]] = defaultdict(list)
        for vote in votes:
            who[None if vote.judgment.all_bad and not options.all_bad else vote.winner].append(vote)
        winner, most = max(who.items(), key=lambda one: len(one[1]))
        if 2 * len(most) <= len(votes):
            left_out["annotators disagree"] += 1
        elif winner not in ("first", "second"):
            left_out["a tie" if winner == "tie" else "all replies are bad"] += 1
        else:
            sides = (votes[0].first, votes[0].second)
            better, worse = sides if winner == "first" else sides[::-1]
            grades = [vote.grade for vote in most if vote.grade is not None]
            provenance = Provenance(
                item.id,
                _names(most),
                against=_names(who["second" if winner == "first" else "first"]),
                tied=_names(who["tie"]),
                neither=_names(who[None]),
                chosen=_written(better),
                rejected=_written(worse),
            )
            yield _Preference(better, worse, statistics.median_low(grades) if grades else None, provenance)


def _edited(
    item: FeedbackItem,
    judgments: Sequence[HumanJudgment],
    voted: Sequence[_Preference],
    unsafe: set[str],
    left_out: Counter[str],
) -> Iterator[_Preference]:
    """Replies that were rewritten, over what they were made of and what that was found better than. Who did not flag
    what another calls unsafe did not rewrite it for that reason."""
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in judgments:
        if one.edited is not None and one.edited.of in unsafe and one.edited.of not in one.unsafe:
            left_out["edited, of a reply that another flagged as unsafe"] += 1
        elif one.edited is not None:
            texts[one.edited.of, one.edited.text].append(one.annotator)
    for (name, text), who in texts.items():
        original = item.reply(name)
        assert original is not None  # it was shown
        edited, chosen = FeedbackReply("", text), _written(original, who)
        worse = [(original, None), *((one.worse, one.grade) for one in voted if one.better.id == name)]
        for reply, grade in worse:
            about = Provenance(item.id, tuple(who), chosen=chosen, rejected=_written(reply))
            yield _Preference(edited, reply, grade, about)


def _names(votes: Iterable[Vote]) -> tuple[str, ...]:
    return tuple(vote.judgment.annotator for vote in votes)


def _written(reply: FeedbackReply, edited_by: Sequence[str] = ()) -> Written:
    return Written(reply.source, dict(reply.sampling), reply.weights, tuple(edited_by))
