"""Vectors of texts: hashed TF-IDF, a sentence-transformers folder, a causal language model."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, Qwen2ForCausalLM

from align.textmodels import embeddings
from align.textmodels.embeddings import HashedTfidf, load_embedder
from align.textmodels.encoders import EncoderError, load_encoder, pooled
from align.textmodels.vectors import unit_rows
from tests.tiny_models import byte_tokenizer, save_causal_lm

TEXTS = [
    "How do I bake bread with yeast?",
    "how do i bake bread, with yeast",
    "Name the capital of France.",
    "法国的首都是哪里？",
    "法国首都是哪里",
    "",
]


@pytest.mark.needs("sklearn")
def test_hashed_tfidf_puts_like_texts_together_in_either_language():
    found = HashedTfidf(TEXTS).embed(TEXTS)
    cosines = found @ found.T
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5) and found.dtype == np.float32
    assert cosines[0, 1] > 0.99 and cosines[3, 4] > 0.8
    assert max(abs(cosines[0, 2]), abs(cosines[0, 3]), abs(cosines[2, 3])) < 0.2
    again = load_embedder(None, TEXTS)
    assert again.name == "hashed TF-IDF" and np.array_equal(again.embed(TEXTS), found)
    one, two = HashedTfidf(["one"]).embed(["one", "two"])
    assert len(one) == 1 + embeddings.REST and abs(one @ two) < 0.5, "a word that was not seen is another one too"


@pytest.mark.needs("sklearn")
def test_cosines_are_those_of_the_whole_tfidf_where_the_directions_are_too_few():
    """Of prompts that differ in one rare word the directions alone see the frequent ones."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [f"What is {'abcdefgh'[at % 8]}{'ijklmnop'[at // 8]}xyz?" for at in range(64)]
    found = HashedTfidf(texts, dimensions=4).embed(texts)
    exact = TfidfVectorizer(token_pattern=embeddings.WORDS, ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    wrong = (found @ found.T - (exact @ exact.T).toarray())[~np.eye(64, dtype=bool)]
    assert abs(wrong.mean()) < 0.03 and wrong.std() < 0.12, "1 / sqrt(64) is 0.125"
    assert (found @ found.T)[~np.eye(64, dtype=bool)].max() < 0.8


@pytest.mark.needs("sklearn")
def test_its_directions_are_found_on_an_even_sample(monkeypatch):
    monkeypatch.setattr(embeddings, "FITTED_ON", 3)
    texts = TEXTS[:3] * 4
    assert np.allclose(HashedTfidf(texts).embed(texts), HashedTfidf(texts[::4]).embed(texts))


def test_rows_of_zeros_become_the_first_axis():
    assert unit_rows(np.array([[0.0, 0], [3, 4]])).tolist() == pytest.approx(np.array([[1, 0], [0.6, 0.8]]))


def test_poolings_by_hand():
    hidden = torch.tensor([[[1.0, 0], [3, 2], [9, 9]], [[2.0, 4], [4, 0], [6, -1]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    wanted = {
        "cls": [[1, 0], [2, 4]],
        "lasttoken": [[3, 2], [6, -1]],
        "mean": [[2, 1], [4, 1]],
        "max": [[3, 2], [6, 4]],
        "weightedmean": [[7 / 3, 4 / 3], [28 / 6, 1 / 6]],
    }
    for how, vectors in wanted.items():
        assert pooled(hidden, mask, how).flatten().tolist() == pytest.approx(np.array(vectors).flatten()), how


def test_a_causal_model_gives_the_mean_of_its_last_hidden_states(tmp_path):
    save_causal_lm(tmp_path / "model")
    model, tokenizer = Qwen2ForCausalLM.from_pretrained(tmp_path / "model").eval(), byte_tokenizer()
    texts = ["short", "a longer text, which is padded against", ""]
    found = load_encoder(tmp_path / "model").embed(texts)
    assert found.shape == (3, model.config.hidden_size) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for row, text in enumerate(texts[:2]):
        with torch.no_grad():
            alone = model.model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state.mean(1)
        assert torch.allclose(torch.nn.functional.normalize(alone), torch.tensor(found[row]), atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    """A sentence-transformers folder of a random BERT with our tokenizer, pooled by its first token."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).eval().save_pretrained(
        tmp_path
    )
    kinds = {"0": ("", "Transformer"), "1": ("1_Pooling", "Pooling"), "2": ("2_Normalize", "Normalize")}
    chain = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.values()]
    write(tmp_path / "modules.json", chain)
    (tmp_path / "1_Pooling").mkdir()
    write(tmp_path / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": True})
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    write(tmp_path / "config_sentence_transformers.json", prompts)
    return tmp_path


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def test_a_sentence_transformers_folder_is_read_as_its_files_say(folder):
    found = load_encoder(folder).embed(["ABC and more than eight tokens", "x"])
    ids = byte_tokenizer()("q: abc and more than eight tokens")["input_ids"][:8]
    with torch.no_grad():
        first = BertModel.from_pretrained(folder)(input_ids=torch.tensor([ids])).last_hidden_state[:, 0]
    assert torch.allclose(torch.nn.functional.normalize(first)[0], torch.tensor(found[0]), atol=1e-5)


def test_modules_and_poolings_that_are_not_known_are_refused(folder):
    write(folder / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})
    with pytest.raises(EncoderError, match=r"1_Pooling/config\.json pools by cls and max"):
        load_encoder(folder)
    chain = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*chain, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(EncoderError, match="a chain of Transformer, Pooling, Normalize, Dense"):
        load_encoder(folder)
    (folder / "modules.json").write_text("[1")
    with pytest.raises(EncoderError, match="cannot be read"):
        load_encoder(folder)
