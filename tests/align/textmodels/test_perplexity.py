"""Nats a token under a model of a folder: against a plain float64 computation; windows, limits, in a recipe."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.data.cleaning import build_cleaner
from align.recipe.cleaning_section import CleaningSection
from align.runtime.errors import MissingFileError
from align.textmodels.perplexity import ModelPerplexity, document_losses
from data_formats import Document
from tests.tiny_models import byte_tokenizer, save_causal_lm

TEXTS = ["a short one", "好的。", "one that is longer than a window of sixteen tokens, and than two of them", ""]
END = 256


def by_hand(path, text, window):
    """The mean over windows of what the model says of each token behind those before it, one window at a time."""
    model, total = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval(), 0.0
    ids = [END, *byte_tokenizer()(text).input_ids, END]
    for start in range(0, len(ids) - 1, window):
        block = torch.tensor([ids[start : start + window + 1]])
        with torch.no_grad():
            logps = model(block).logits.log_softmax(-1)
        total -= sum(logps[0, at, block[0, at + 1]].item() for at in range(block.shape[1] - 1))
    return total / (len(ids) - 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("model"))


def test_nats_a_token(path):
    found = ModelPerplexity(str(path), 16)(TEXTS)
    assert found == pytest.approx([by_hand(path, text, 16) for text in TEXTS], rel=1e-4)
    wide = ModelPerplexity(str(path), 4096)(["x" * 300])  # the model has room for 128 tokens
    assert wide == pytest.approx([by_hand(path, "x" * 300, 127)], rel=1e-4)
    assert ModelPerplexity(str(path))([]) == []


def test_short_texts_share_a_forward(path):
    model, forwards = AutoModelForCausalLM.from_pretrained(path).eval(), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    document_losses(model, byte_tokenizer(), ["a short one"] * 100, 1024)
    assert len(forwards) == 1


def test_in_a_recipe(path):
    nats = {text: by_hand(path, text, 1024) for text in TEXTS[:3]}
    order = sorted(nats, key=nats.get)
    limits = {"min_nats": (nats[order[0]] + nats[order[1]]) / 2, "max_nats": (nats[order[1]] + nats[order[2]]) / 2}
    section = CleaningSection.model_validate({"perplexity": {"model": str(path), **limits}})
    cleaner = build_cleaner(section)
    assert [record.text for record in cleaner.clean(map(Document, order))] == [order[1]]
    step = next(step for step in cleaner.report.steps if step.name == "perplexity")
    assert sum(step.dropped.values()) == 2


def test_no_model(tmp_path):
    with pytest.raises(MissingFileError, match="none"):
        ModelPerplexity(str(tmp_path / "none"))(["x"])
