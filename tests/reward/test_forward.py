"""What a reward model cannot compute is told with the lengths."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model, OPTConfig, OPTModel, RobertaConfig, RobertaForSequenceClassification

from data_formats.records import Message
from reward.classifier import ClassifierReward
from reward.forward import forward_errors, position_room
from reward.head import ScalarHead
from reward.model import RewardModel
from reward.protocol import RewardError, Sample
from reward.sources import ModelReward
from tests.tiny_models import bert_tokenizer, byte_tokenizer

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = "what is two and three"


def roberta(folder, pad=1, positions=20):
    config = RobertaConfig(vocab_size=9, num_labels=1, pad_token_id=pad, max_position_embeddings=positions, **SHAPE)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = bert_tokenizer(WORDS)
    tokenizer.model_max_length = 10**9  # as many tokenizers say, who do not know
    tokenizer.save_pretrained(folder)
    return folder


def asked(words):
    return [Sample((Message("user", "what is two"),), " ".join(["three"] * words))]


def test_the_room_of_every_kind_of_table():
    roberta_model = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=9, pad_token_id=3, max_position_embeddings=20, **SHAPE)
    )
    assert position_room(roberta_model) == 16  # 20 - 3 - 1
    assert position_room(roberta_model, own_positions=True) == 20
    gpt2 = GPT2Model(GPT2Config(vocab_size=9, n_positions=12, n_embd=16, n_layer=1, n_head=2))
    assert position_room(gpt2) == 12
    opt = OPTModel(
        OPTConfig(vocab_size=9, max_position_embeddings=14, hidden_size=16, num_hidden_layers=1, ffn_dim=16,
                  num_attention_heads=2, word_embed_proj_dim=16)
    )  # fmt: skip
    assert position_room(opt) == 14  # beside an offset of 2
    with torch.no_grad():
        opt(torch.ones(1, 14, dtype=torch.long))
    with pytest.raises(IndexError):
        opt(torch.ones(1, 15, dtype=torch.long))


@pytest.mark.parametrize("pad", [1, 0])
def test_a_classifier_with_a_table_of_positions_cuts_what_has_no_room(tmp_path, pad):
    reward = ClassifierReward(roberta(tmp_path, pad))
    assert reward.max_length == 20 - pad - 1
    assert len(reward.encode(asked(40)[0])) == reward.max_length
    assert len(reward.score(asked(40))) == 1


def test_a_failed_forward_says_how_long_the_reply_is(tmp_path):
    reward = ClassifierReward(roberta(tmp_path))
    with torch.no_grad():
        reward.model.roberta.embeddings.word_embeddings.weight.resize_(3, 16)  # ids it does not have
    where = "where a reply of 5 tokens makes 11 with its prompt, and the model has room for 18; sample shorter"
    with pytest.raises(RewardError, match=rf"'reward_model': its model failed \(IndexError: .*\) {where}") as caught:
        reward.score(asked(5))
    assert isinstance(caught.value.__cause__, IndexError)


def test_our_own_model_is_not_asked_beyond_its_table():
    tokenizer = byte_tokenizer()
    body = GPT2Model(GPT2Config(vocab_size=259, n_positions=24, n_embd=16, n_layer=1, n_head=2))
    reward = ModelReward(RewardModel(body, ScalarHead(16)), tokenizer)
    fits = Sample((), "", prompt_ids=(1,) * 10, completion_ids=(2,) * 13 + (258,))
    assert len(reward.score([fits])) == 1
    long = Sample((), "", prompt_ids=(1,) * 10, completion_ids=(2,) * 14 + (258,))
    with pytest.raises(RewardError, match="15 tokens makes 25 with its prompt, and the model has room for 24"):
        reward.score([fits, long])


def test_a_lack_of_memory_is_left_to_who_asked():
    short = pytest.raises(RuntimeError, match="can't allocate memory")
    with short as caught, forward_errors("r", torch.nn.Identity(), [[1]], lambda at: 1, None):
        torch.empty(1 << 60)
    assert not isinstance(caught.value, RewardError)
