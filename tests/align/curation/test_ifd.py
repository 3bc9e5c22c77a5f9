"""Loss ratios against ratios of a float64 model that are worked out token by token, from ids that are put together by
hand; what has none; kept losses; and the length that is taken off."""

import json
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import Qwen2ForCausalLM

from align.curation.difficulty import difficulty_scorer
from align.curation.ifd import IFD
from align.curation.kept import PIECE, Kept
from align.curation.scale import quantiles_at_length
from align.curation.scorer import ScorerError
from align.models.load import load_saved
from align.models.tokenizer import load_saved_tokenizer
from align.recipe.scorer_sections import IFDDifficultySection
from data_formats.records import Comparison, Demonstration, Document, Message, Prompt, Reply, Scored
from tests.tiny_models import save_causal_lm

START, END = 257, 258  # <|im_start|>, <|im_end|> of the byte tokenizer


def demo(prompt, reply, *before):
    return Demonstration((*before, Message("user", prompt), Message("assistant", reply)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("policy"), seed=3)


@pytest.fixture(scope="module")
def policy(folder):
    tokenizer = load_saved_tokenizer(folder)
    return load_saved(folder, tokenizer), tokenizer


def symbol_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def turn(tokenizer, role, text):
    return [START, *symbol_ids(tokenizer, f"{role}\n{text}"), END, *symbol_ids(tokenizer, "\n")]


@torch.no_grad()
def mean_loss(model, before, reply):
    """Of the reply's ids, one forward pass a token."""
    losses = []
    for at, token in enumerate(reply):
        logits = model(torch.tensor([[*before, *reply[:at]]])).logits[0, -1]
        losses.append(math.log(sum(math.exp(one) for one in logits.tolist())) - float(logits[token]))
    return sum(losses) / len(losses)


def by_hand(folder, tokenizer, turns, reply, most=None):
    """(loss given the prompt, loss alone) in float64."""
    model = Qwen2ForCausalLM.from_pretrained(folder).double().eval()
    opening = [START, *symbol_ids(tokenizer, "assistant\n")]
    given = [id for role, text in turns for id in turn(tokenizer, role, text)] + opening
    alone = [*turn(tokenizer, "user", ""), *opening]
    ids = symbol_ids(tokenizer, reply)[:most]
    return mean_loss(model, given, ids), mean_loss(model, alone, ids)


def test_losses_are_those_of_a_float64_model_token_by_token(folder, policy):
    rows = [
        demo("Name a fruit.", "A pear."),
        demo(
            "Say it in Chinese.",
            "梨子 ✓",
            Message("system", "Be brief."),
            Message("user", "a"),
            Message("assistant", "b"),
        ),
        Comparison((Message("user", "Which?"),), "This one.", "That one, I think."),
        Scored((Message("user", "Which?"),), (Reply("no", 0.0), Reply("yes, this", 2.0), Reply("?", 1.0))),
    ]
    talks = [
        ([("user", "Name a fruit.")], "A pear."),
        ([("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "Say it in Chinese.")], "梨子 ✓"),
        ([("user", "Which?")], "This one."),
        ([("user", "Which?")], "yes, this"),
    ]
    for batch_tokens in (8192, 1):  # all in one batch, and each alone
        found = IFD(*policy, batch_tokens=batch_tokens).losses(rows)
        for (given, alone, count), talk in zip(found, talks, strict=True):
            assert (given, alone) == pytest.approx(by_hand(folder, policy[1], *talk), abs=2e-5)
            assert count == len(symbol_ids(policy[1], talk[1]))
    ratios = IFD(*policy, length_free=False).score(rows)
    for ratio, talk in zip(ratios, talks, strict=True):
        given, alone = by_hand(folder, policy[1], *talk)
        assert ratio == (pytest.approx(given / alone, abs=1e-5) if given < alone else None)


def test_a_long_reply_is_cut_a_long_prompt_and_an_empty_reply_have_no_score(folder, policy):
    opening = len("\nassistant\n") + len("user\n") + 3  # of a prompt: three control tokens beside its text
    scorer = IFD(*policy, max_length=opening + 9 + 5, length_free=False)
    rows = [
        demo("Tell all.", "0123456789"),
        demo("p" * 40, "no room"),
        demo("Tell all.", " "),
        demo("Tell all.", "01234"),
    ]
    found = scorer.losses(rows)
    assert found[0][2] == 5 and found[0] == found[3] and found[1:3] == [None, None]
    assert found[0][:2] == pytest.approx(by_hand(folder, policy[1], [("user", "Tell all.")], "01234"), abs=2e-5)
    assert scorer.score([Demonstration((Message("assistant", "nobody asked"),))]) == [None]


@pytest.mark.parametrize("record", [Document("text"), Prompt((Message("user", "q"),))])
def test_what_has_no_reply_is_refused_by_name(policy, record):
    with pytest.raises(
        ScorerError, match=rf"record 1 is a {type(record).__name__}, which the scorer 'ifd' cannot rate"
    ):
        IFD(*policy).score([demo("a", "b"), record])


def test_what_was_rated_is_kept_by_content_and_model_and_a_torn_line_is_rated_again(folder, tmp_path, monkeypatch):
    section = IFDDifficultySection(kind="ifd", model_from=str(folder), length_free=False)
    rows = [demo(f"Count to {n}.", "1, 2, 3"[: n + 1]) for n in range(6)]
    first = difficulty_scorer(section, str, tmp_path).score(rows)
    file = tmp_path / "scores.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 6 and all(json.loads(line)["numbers"][2] == n + 1 for n, line in enumerate(lines))
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    asked = []
    monkeypatch.setattr(IFD, "_rate", rate_and_tell(IFD._rate, asked))
    again = difficulty_scorer(section, str, tmp_path).score([*rows[::-1], demo("New.", "row")])
    assert again[:6] == first[::-1] and asked == ["1, 2, 3"[:6], "row"]
    shorter = section.model_copy(update={"max_length": 64})
    difficulty_scorer(shorter, str, tmp_path).score(rows[:2])
    assert asked[2:] == ["1", "1,"]  # with another limit nothing is known


def rate_and_tell(rate, asked):
    def told(self, exchanges):
        asked.extend(one.reply for one in exchanges)
        return rate(self, exchanges)

    return told


def test_a_failure_loses_at_most_a_piece(policy, tmp_path):
    rows, calls = [demo("q", f"reply {n}") for n in range(2 * PIECE + 3)], []

    class Stopped(Exception):
        pass

    def rate(exchanges):
        calls.append(len(exchanges))
        if len(calls) == 2:
            raise Stopped
        return [(1.0, 2.0, float(len(one.reply))) for one in exchanges]

    for _ in range(2):
        scorer = IFD(*policy, kept=Kept(tmp_path / "scores.jsonl", {}))
        scorer._rate = rate
        if not calls:
            with pytest.raises(Stopped):
                scorer.losses(rows)
    assert scorer.losses(rows)[-1] == (1.0, 2.0, 9.0) and calls == [PIECE, PIECE, PIECE, 3]


def test_the_rank_among_rows_of_alike_length_knows_no_length():
    draw = random.Random(0)
    lengths = [draw.randint(1, 400) for _ in range(1000)]
    scores = [1 - 5 / (length + 5) + 0.3 * draw.gauss(0, 1 / math.sqrt(length)) for length in lengths]
    free = quantiles_at_length(scores, lengths)
    assert abs(spearmanr(scores, lengths).statistic) > 0.6 and abs(spearmanr(free, lengths).statistic) < 0.06
    spread = [np.std([f for f, n in zip(free, lengths, strict=True) if low < n <= low + 100]) for low in (0, 300)]
    assert spread == pytest.approx([1 / math.sqrt(12)] * 2, abs=0.03)  # that of uniform numbers, short or long
    # by hand: a tenth of ten rows on each side, so windows of three; the middle of a window of levels is half
    assert quantiles_at_length([5, 1, 2, 3, 3, 3, 3, None, 9, 8], range(10)) == pytest.approx(
        [5 / 6, 1 / 6, 1 / 2, 2 / 3, 1 / 2, 1 / 2, 1 / 3, None, 5 / 6, 1 / 2]
    )
    assert quantiles_at_length([None, None], [1, 2]) == [None, None]
