"""Which pairs of replies are worth a judgment, and what their judgments are expected to bring.

`uncertain` takes the pairs on which the members of an ensemble differ most in what they expect: the mutual information
between a pair's judgment and which member is right, H(mean p) - mean H(p) in nats, where p is the probability that a
member gives to the first reply (BALD; Houlsby et al. 2011, arXiv 1112.5745; of reward models Gleave & Irving 2022,
2203.07472). A pair that all members call even holds none: its judgment is a coin's. `diverse` takes each pair as far as
can be from those taken before (farthest-first traversal, Gonzalez 1985), by the cosine of TF-IDF over the words and
pairs of words of prompt and replies. `random` draws.

Departures: with `uncertain` and `random` no prompt gives a second pair before every prompt has given one, since pairs
of one prompt tell much the same; beyond that, what the chosen pairs share is not accounted for (no batch BALD).

Arrays: M members of the ensemble, P pairs, D texts, W words.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from align.feedback.items import FeedbackItem, FeedbackReply
from data_formats.cleaning.shingles import shingles

Choice = Literal["random", "uncertain", "diverse"]
CHOICES: tuple[Choice, ...] = ("random", "uncertain", "diverse")
FEWEST = 3  # members from which their spread has an error


@dataclass(frozen=True, slots=True)
class ItemPair:
    """Two replies of an item."""

    item: FeedbackItem
    first: FeedbackReply
    second: FeedbackReply

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for the same replies to the same prompt, in either order, whatever item they stand in."""
        return self.item.prompt, self.item.tools, *sorted((self.first.reply, self.second.reply))


def pairs_of(items: Sequence[FeedbackItem]) -> list[ItemPair]:
    """Every two replies of each item."""
    return [ItemPair(item, *two) for item in items for two in combinations(item.replies, 2)]


def choose(
    pairs: Sequence[ItemPair],
    count: int,
    how: Choice,
    *,
    seed: int,
    first_MP: np.ndarray | None = None,
    before: Sequence[ItemPair] = (),
) -> list[int]:
    """Indices of `count` pairs, or of all where these are fewer, the most wanted first.

    Args:
        seed: of what is drawn: all of `random`, where `diverse` begins, the order of equals.
        first_MP: for `uncertain`, the probability that each member gives to the first reply.
        before: for `diverse`, pairs that were chosen earlier, from which the next ones are to be far too.
    """
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    if how == "diverse":
        texts = [_text(pair) for pair in (*before, *pairs)]
        taken = farthest_first(texts, len(before) + count, range(len(before)) or order[:1])
        return [at - len(before) for at in taken[len(before) :]]
    if how == "uncertain":
        nats_P = information(first_MP)
        order.sort(key=lambda at: -nats_P[at])
    return in_turns(order, [(pair.item.prompt, pair.item.tools) for pair in pairs], count)


def in_turns(order: Sequence[int], prompts: Sequence[Hashable], count: int) -> list[int]:
    """The first `count` of an order in which no prompt comes again before all others that are left have come."""
    times: Counter[Hashable] = Counter()
    turns = []
    for place, at in enumerate(order):
        turns.append((times[prompts[at]], place, at))
        times[prompts[at]] += 1
    return [at for _, _, at in sorted(turns)[:count]]


def _text(pair: ItemPair) -> str:
    return "\n".join([*(turn.content for turn in pair.item.prompt), pair.first.reply, pair.second.reply])


def farthest_first(texts: Sequence[str], count: int, start: Sequence[int]) -> list[int]:
    """Indices of `count` texts: `start`, then again and again the one that is farthest from the nearest taken."""
    vectors_DW = _tf_idf(texts)
    taken: list[int] = []
    distance_D = np.full(len(texts), np.inf)
    while len(taken) < min(count, len(texts)):
        at = start[len(taken)] if len(taken) < len(start) else int(distance_D.argmax())
        taken.append(at)
        distance_D = np.minimum(distance_D, 1 - (vectors_DW @ vectors_DW[[at]].T).toarray()[:, 0])
        distance_D[taken] = -1.0
    return taken


def _tf_idf(texts: Sequence[str]) -> Any:
    """Rows of unit length, sparse (D, W): the words and pairs of words that a text has, each once, rare ones more."""
    from scipy.sparse import csr_array

    words = [np.union1d(shingles(text, 1, "word"), shingles(text, 2, "word")) for text in texts]
    rows = np.repeat(np.arange(len(texts)), list(map(len, words)))
    _, columns, counts = np.unique(np.concatenate(words), return_inverse=True, return_counts=True)
    values = np.log((1 + len(texts)) / counts)[columns]
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(texts)))
    return csr_array((values / lengths[rows], (rows, columns)), shape=(len(texts), len(counts)))


def information(first_MP: np.ndarray) -> np.ndarray:
    """What the judgment of each pair would tell about which member is right, nats (P,); 0 where they agree."""
    return np.maximum(_entropy(first_MP.mean(0)) - _entropy(first_MP).mean(0), 0.0)


def _entropy(first: np.ndarray) -> np.ndarray:
    """Of a coin with this probability, nats."""
    inside = np.clip(first, 1e-12, 1 - 1e-12)
    return -inside * np.log(inside) - (1 - inside) * np.log1p(-inside)


def expectation(first_MP: np.ndarray, chosen: Sequence[int]) -> dict[str, float | None]:
    """What the judgments of the chosen pairs are expected to bring, by the members' own account.

    Returns:
        `nats`, the sum of what each would tell about which member is right: what they tell together is no more.
        `nats_error`, its standard error over the members (jackknife), None of fewer than three. `nats_random`, the sum
        for as many pairs at random. `surprises`, the share of judgments expected to go against the members' mean;
        `surprises_error`, the standard deviation that chance leaves in that share where the members are right;
        `surprises_random`, the share at random.
    """
    members, chosen = len(first_MP), list(chosen)
    nats_P, mean_P = information(first_MP), first_MP.mean(0)
    against_P = np.minimum(mean_P, 1 - mean_P)
    error = None
    if members >= FEWEST:
        without = [information(np.delete(first_MP[:, chosen], at, 0)).sum() for at in range(members)]
        error = float(np.sqrt((members - 1) / members * np.square(without - np.mean(without)).sum()))
    own = against_P[chosen]
    return {
        "nats": float(nats_P[chosen].sum()),
        "nats_error": error,
        "nats_random": float(nats_P.mean() * len(chosen)),
        "surprises": float(own.mean()),
        "surprises_error": float(np.sqrt((own * (1 - own)).sum()) / len(chosen)),
        "surprises_random": float(against_P.mean()),
    }
