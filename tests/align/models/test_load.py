import json
import logging
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from align.models.critic import Critic
from align.models.load import load_causal_lm, load_critic, load_options, load_reward_model, new_causal_lm
from align.recipe.model_section import Architecture, ModelSection
from align.runtime.errors import MissingFileError
from reward.checkpointing import is_checkpointing
from reward.errors import ModelFileError
from reward.model import RewardModel
from tests.tiny_models import byte_tokenizer, qwen2_config, save_causal_lm

SHAPE = Architecture(
    vocab_size=500, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
SECTION = ModelSection(path="unused")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("base"), attention_dropout=0.3)


def same(left, right):
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


def test_a_new_model_is_native_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = new_causal_lm(SHAPE, byte_tokenizer(), seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert type(model) is Qwen2ForCausalLM
    assert same(model, new_causal_lm(SHAPE, byte_tokenizer(), seed=1))
    assert not same(model, new_causal_lm(SHAPE, byte_tokenizer(), seed=2))


def test_a_new_model_has_the_tokenizers_vocabulary_and_end_token_and_a_learning_pad_token():
    model = new_causal_lm(SHAPE, byte_tokenizer(), seed=1)
    assert model.get_input_embeddings().weight.shape == (259, 16)
    assert model.config.eos_token_id == 258
    assert model.get_input_embeddings().padding_idx is None
    assert model.config.num_hidden_layers == 2
    assert model.config.max_position_embeddings == 64


def test_a_causal_model_comes_back_as_saved_with_dropout_as_asked(base):
    model = load_causal_lm(base, SECTION)
    assert same(model, Qwen2ForCausalLM.from_pretrained(base))
    assert model.config.attention_dropout == 0.0
    assert load_causal_lm(base, SECTION, attention_dropout=0.1).config.attention_dropout == 0.1
    assert not model.training


class NormHead(nn.Linear):
    """Baichuan 2's: rows are divided by their norms at each call."""

    def forward(self, states):
        return nn.functional.linear(states, nn.functional.normalize(self.weight))


class NormedConfig(Qwen2Config):
    model_type = "normed"


class NormedLM(Qwen2ForCausalLM):
    config_class = NormedConfig

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size, bias=False)


def test_a_normalised_head_is_refused_by_name(tmp_path):
    AutoConfig.register("normed", NormedConfig)
    AutoModelForCausalLM.register(NormedConfig, NormedLM)
    NormedLM(NormedConfig(**qwen2_config().to_dict())).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match=r"output embeddings are a NormHead \(Baichuan 2\), which divides"):
        load_causal_lm(tmp_path, SECTION)


def test_the_section_says_dtype_attention_and_checkpointing(base):
    section = ModelSection(path="x", dtype="bfloat16", attn_implementation="eager", gradient_checkpointing=True)
    for load in (load_causal_lm, load_reward_model, load_critic):
        model = load(base, section)
        assert next(model.parameters()).dtype == torch.bfloat16
        assert model.config._attn_implementation == "eager"
        assert is_checkpointing(model)


def test_the_revision_belongs_to_the_recipes_model_alone():
    section = ModelSection(path="owner/name", revision="v2", trust_remote_code=True)
    assert load_options("owner/name", section)["revision"] == "v2"
    assert "revision" not in load_options("runs/x/base/model", section)
    assert load_options("owner/name", section)["trust_remote_code"] is True


def test_pmp_to_rm_keeps_the_head_and_base_to_rm_draws_one(base, tmp_path):
    torch.manual_seed(0)
    pmp = load_reward_model(base, SECTION)
    pmp.shift.fill_(0.5)
    pmp.save_pretrained(tmp_path)
    continued = load_reward_model(tmp_path, SECTION)
    assert same(pmp, continued)
    assert continued.shift.item() == 0.5
    assert not torch.equal(load_reward_model(base, SECTION).head.weight, pmp.head.weight)


def test_a_classifier_gives_its_body_and_says_that_its_head_stays_behind(tmp_path, caplog):
    classifier = Qwen2ForSequenceClassification(qwen2_config(num_labels=1, pad_token_id=256))
    classifier.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = load_reward_model(tmp_path, SECTION)
    assert same(model.backbone, classifier.model)
    assert "its own head is left behind" in caplog.text


@pytest.mark.since("5.19")  # before, no such config is read at all
def test_architectures_that_are_no_names_stand_in_no_way(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    for value in (5, [1, 2], None):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": value}))
        assert load_reward_model(tmp_path / "model", SECTION).head.weight.shape == (1, 16)


def test_a_critic_starts_from_anything(base, tmp_path):
    torch.manual_seed(0)
    load_reward_model(base, SECTION).save_pretrained(tmp_path / "rm")
    critic = load_critic(tmp_path / "rm", SECTION)
    assert isinstance(critic, Critic)
    assert not critic.head.weight.any()
    assert same(critic, load_critic(base, SECTION))
    critic.head.weight.data.fill_(0.25)
    critic.save_pretrained(tmp_path / "critic")
    assert same(critic, load_critic(tmp_path / "critic", SECTION))
    Qwen2ForSequenceClassification(qwen2_config(num_labels=1, pad_token_id=256)).save_pretrained(tmp_path / "foreign")
    assert not load_critic(tmp_path / "foreign", SECTION).head.weight.any()


@pytest.mark.parametrize("load", [load_causal_lm, load_reward_model, load_critic])
def test_missing_and_torn_folders_are_one_clear_error(base, tmp_path, load):
    with pytest.raises(MissingFileError, match=str(tmp_path / "nothing")):
        load(tmp_path / "nothing", SECTION)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        folder = save_causal_lm(tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
        with pytest.raises(ModelFileError, match=str(folder / name)):
            load(folder, SECTION)


def test_a_reward_model_is_no_causal_model(base, tmp_path):
    RewardModel.from_backbone(base).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="lm_head"):
        load_causal_lm(tmp_path, SECTION)
