"""The loss on plain text before and after: by hand, and against a straightforward float64 computation."""

import math

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM

from align.evaluation.harness import ask_tasks, task_differences
from align.evaluation.tax import loss_difference, ratio
from align.textmodels import perplexity
from align.textmodels.perplexity import DocumentLosses, blocks_of, document_losses
from tests.tiny_models import byte_tokenizer, save_causal_lm

TEXTS = ["a short one", "好的。", "one that is longer than a block of twelve tokens, and than two of them", "x"]
END = 256


def test_every_token_is_predicted_once():
    blocks = list(blocks_of(byte_tokenizer(), range(10, 20), 4))
    assert blocks == [[END, 10, 11, 12, 13], [13, 14, 15, 16, 17], [17, 18, 19, END]]
    assert list(blocks_of(byte_tokenizer(), [5, 6, 7], 4)) == [[END, 5, 6, 7, END]]
    assert list(blocks_of(byte_tokenizer(), [], 4)) == [[END, END]]


def test_a_tokenizer_that_opens_texts_opens_documents():
    names = byte_tokenizer()
    opening = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 257)])
    names.backend_tokenizer.post_processor, names.bos_token = opening, "<|im_start|>"
    assert names("a").input_ids[0] == names.bos_token_id == 257
    assert list(blocks_of(names, [5, 6], 4)) == [[257, 5, 6, END]]


def test_losses_of_documents_one_by_one_in_float64(tmp_path, monkeypatch):
    path, names = save_causal_lm(tmp_path, dtype=torch.float64), byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", 39)  # three blocks in a batch
    found = document_losses(model, names, TEXTS, 12)
    for text, nats, tokens in zip(TEXTS, found.nats, found.tokens, strict=True):
        ids = [END, *names(text).input_ids, END]
        expected = 0.0
        for start in range(0, len(ids) - 1, 12):
            block = torch.tensor([ids[start : start + 13]])
            with torch.no_grad():
                logps = model(input_ids=block).logits.log_softmax(dim=-1)
            expected -= sum(logps[0, at, block[0, at + 1]].item() for at in range(block.shape[1] - 1))
        assert nats == pytest.approx(expected, rel=1e-6)
        assert tokens == len(ids) - 1


def test_differences_by_hand():
    """Nats 2, 8 and then 4, 9 of 2 and 4 tokens: 3 more of 6, a half each; 2 - .5 x 2 = 1 and 1 - .5 x 4 = -1, so the
    variance of the ratio is 2 (1 + 1) / 36."""
    before, after = DocumentLosses([2.0, 8.0], [2, 4]), DocumentLosses([4.0, 9.0], [2, 4])
    found = loss_difference(before, after, ["ab", "好好"])
    assert (found["before"]["loss"], found["after"]["loss"]) == pytest.approx((10 / 6, 13 / 6))
    assert found["after"]["bits_per_byte"] == pytest.approx(13 / math.log(2) / 8)
    half = 1.96 * math.sqrt(2 * (1 + 1) / 36)
    assert found["difference"]["loss"] == pytest.approx({"difference": 0.5, "low": 0.5 - half, "high": 0.5 + half})
    assert found["difference"]["bits_per_byte"]["difference"] == pytest.approx(3 / math.log(2) / 8)
    assert (found["documents"], found["tokens"], found["bytes"]) == (2, 6, 8)
    alone = loss_difference(DocumentLosses([2.0], [2]), DocumentLosses([4.0], [2]), ["ab"])
    assert alone["difference"]["loss"] == {"difference": 1.0, "low": None, "high": None}  # documents may differ
    other = loss_difference(before, DocumentLosses([4.0, 9.0], [1, 4]), ["ab", "好好"])
    assert other["difference"]["loss"] is None  # other tokens are other questions
    assert other["difference"]["bits_per_byte"] == found["difference"]["bits_per_byte"]


def test_the_interval_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        sizes = rng.integers(5, 60, size=80)
        found = ratio((sizes * rng.normal(0.3, 1.0, size=80)).tolist(), sizes.tolist())  # tokens hang together
        covered += found["low"] <= 0.3 <= found["high"]
    assert 270 <= covered <= 297


def test_tasks_document_by_document():
    before = {"sums": {"acc": {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0}}, "gone": {"acc": {0: 1.0}}}
    after = {"sums": {"acc": {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, "new": {0: 1.0}}}
    half = 1.96 * math.sqrt((4 * 0.25 / 3) / 4)
    expected = {"before": 0.5, "after": 1.0, "documents": 4, "difference": 0.5, "low": 0.5 - half, "high": 0.5 + half}
    assert task_differences(before, after) == {"sums": {"acc": pytest.approx(expected)}}


TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{a}} and {{b}} is"
doc_to_choice: ["2", "3", "4"]
doc_to_target: "{{a + b - 2}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.needs("lm_eval")
def test_a_task_of_ones_own_by_the_harness(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(save_causal_lm(tmp_path / "model")).eval()
    rows = [(a, b) for a in (1, 2) for b in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"a": {a}, "b": {b}}}\n' for a, b in rows))
    (tmp_path / "sums.yaml").write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    names = byte_tokenizer()
    found = ask_tasks(model, names, [str(tmp_path / "sums.yaml")], limit=None, batch_size=2, seed=0)
    right = {}
    for at, (a, b) in enumerate(rows):
        scores = []
        for answer in ("2", "3", "4"):
            ids = torch.tensor([names(f"{a} and {b} is {answer}").input_ids])
            with torch.no_grad():
                logps = model(input_ids=ids).logits.log_softmax(dim=-1)
            scores.append(sum(logps[0, at, ids[0, at + 1]].item() for at in (-3, -2)))
        right[at] = float(int(np.argmax(scores)) == a + b - 2)
    assert found == {"sums": {"acc": right}}
