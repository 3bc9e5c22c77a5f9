"""The words of the page that not everybody knows: what they mean, and how they are marked where they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """A word and what it means; `spellings` are the forms in which it is marked, `key` its anchor."""

    word: str
    meaning: str
    spellings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.word.lower()).strip("-")


TERMS = (
    Term(
        "95 % interval",
        "Where the true figure lies, 19 times of 20, given how few prompts or pairs were asked.",
        ("95 % interval", "Intervals", "interval"),
    ),
    Term(
        "alignment tax",
        "What a model forgets of its pretraining while it is aligned: the rise of the loss on held-out "
        "pretraining text, and of other tasks' errors.",
        ("alignment tax",),
    ),
    Term(
        "at equal lengths",
        "What the win share would be if the later replies were as long as the earlier ones, since many judges like "
        "longer ones.",
        ("at equal lengths", "At equal lengths"),
    ),
    Term("base", "Pretraining: the model learns to continue text.", ("base",)),
    Term("best of k", "The reply with the highest reward of k sampled ones.", ("best of k",)),
    Term(
        "calibration",
        "Whether a model that says 80 % is right 8 times of 10. The expected calibration error is how far it "
        "is from that, on average.",
        ("expected calibration error", "calibration"),
    ),
    Term(
        "clip fraction",
        "Share of tokens whose probability moved as far in an update as PPO allows.",
        ("clip fraction", "clip fractions"),
    ),
    Term("correct", "Share of replies that are right, whatever their manners.", ("correct",)),
    Term(
        "critic",
        "The model that predicts, token by token, what reward a reply will get; PPO learns from what was "
        "better or worse than that.",
        ("critic",),
    ),
    Term(
        "DPO",
        "Direct preference optimization: the policy learns from pairs of replies which one people prefer, without a "
        "reward model. Its implicit reward is how much likelier it finds a reply than the policy it started from.",
        ("DPO", "implicit rewards"),
    ),
    Term("entropy", "How undecided the policy is about the next token. Near 0 it always says the same.", ("entropy",)),
    Term(
        "explained variance",
        "How much of the rewards' differences the critic foresees: 1 is all, 0 is nothing, below 0 is worse "
        "than a constant.",
        ("explained variance",),
    ),
    Term(
        "gold",
        "A judge that training never sees: the embedded world's own rules, or a second reward that is kept apart.",
        ("gold score", "gold reward", "gold"),
    ),
    Term("greedy", "Always the most likely token, so the same reply every time.", ("greedy",)),
    Term("held out", "Kept apart from training, to measure on.", ("held-out", "held out")),
    Term(
        "judge",
        "Who says which of two replies is better: a reward, people, a function or a language model.",
    ),
    Term(
        "KL",
        "How far the policy has moved from what it was (the reference), in nats: 0 is not at all. PPO pays for it.",
        ("KL", "Kullback-Leibler divergence"),
    ),
    Term(
        "length alone",
        "What always taking the longer (or the shorter) reply would get on the same pairs: a reward model "
        "should beat it by far.",
        ("length alone",),
    ),
    Term(
        "manners",
        "How something is said, not whether it is right: “Sure! 2 + 3 is 4.” has manners, and is wrong.",
        ("by manners", "manners"),
    ),
    Term("nats", "Unit of log-probabilities with base e; 1 nat is a factor of 2.7.", ("nats",)),
    Term(
        "PMP",
        "Preference-model pretraining: the reward model's first training, on many and coarse comparisons.",
        ("PMP", "pmp"),
    ),
    Term("policy", "The model that answers, and that is trained to get a higher reward.", ("policy", "policies")),
    Term(
        "PPO",
        "Proximal policy optimization: the policy answers, the reward says how good that was, and the policy "
        "is moved a little towards what was better than expected.",
        ("PPO",),
    ),
    Term("ptx", "Pretraining text that PPO goes on learning from, so that the model does not forget it.", ("ptx",)),
    Term("reference", "The policy as it was before PPO or DPO.", ("reference",)),
    Term(
        "reward model",
        "Learns from pairs of replies which one people prefer, and gives every reply a score.",
        ("reward model", "Reward model", "RM", "rm"),
    ),
    Term("rollouts", "Replies that the policy samples in training, to learn from.", ("rollouts", "rollout")),
    Term(
        "RS",
        "Rejection sampling: many replies are sampled, and the model is trained on the best of each prompt.",
        ("RS", "Rejection sampling"),
    ),
    Term("SFT", "Supervised finetuning: the model learns from written demonstrations.", ("SFT",)),
    Term(
        "temperature 1",
        "Replies drawn at random with the model's own probabilities, so different every time.",
        ("temperature 1",),
    ),
    Term("unigram entropy", "The loss of a model that knows only how frequent each token is.", ("unigram entropy",)),
    Term(
        "win share",
        "Wins and half of the ties, of all judgments. 50 % is no better than before.",
        ("win share", "win rate"),
    ),
)
_BY_SPELLING = {spelling: term for term in TERMS for spelling in term.spellings}
_SPELLINGS = re.compile(
    rf"(?<![\w-])({'|'.join(re.escape(one) for one in sorted(_BY_SPELLING, key=len, reverse=True))})(?![\w-])"
)


def explained(text: str) -> list[tuple[str, Term | None]]:
    """`text` in pieces, each with its term at the first mention of one, None elsewhere."""
    seen: set[str] = set()
    pieces: list[tuple[str, Term | None]] = []
    for at, piece in enumerate(_SPELLINGS.split(text)):
        term = _BY_SPELLING[piece] if at % 2 else None
        pieces.append((piece, None if term is None or term.key in seen else term))
        if term is not None:
            seen.add(term.key)
    return pieces
