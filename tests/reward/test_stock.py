"""What transformers' own sequence classifier makes of the folders that we write: our scores, or a refusal."""

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    Qwen2Model,
)

from align.models import card
from align.models.critic import Critic
from align.models.load import load_critic, load_reward_model
from align.models.save import save_model
from align.recipe.model_section import ModelSection
from data_formats.chatml import CHAT_TEMPLATE
from data_formats.records import Message
from reward.model import RewardModel
from reward.pooling import POOLINGS
from reward.protocol import Sample
from reward.sources import load_reward
from tests.align.artefacts import scores
from tests.tiny_models import byte_tokenizer, qwen2_config, save_causal_lm

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LONG = [
    {"role": "system", "content": "Be."},
    *TURNS,
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
]


def reward_model(dtype=torch.float32, **options):
    torch.manual_seed(2)
    return RewardModel(Qwen2Model(qwen2_config()).to(dtype), shift=0.5, scale=2.0, **options).eval()


def saved(folder, model, **tokens):
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    save_model(model, tokenizer, folder)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    return folder


@pytest.mark.parametrize("tokens", [{}, {"pad_token": "<|im_end|>"}])
def test_the_stock_class_scores_as_ours_does(tmp_path, tokens):
    folder = saved(tmp_path / "rm", reward_model(), **tokens)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and theirs.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token_id = theirs.config.pad_token_id
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in (TURNS, LONG)]
    assert all(text.endswith("<|im_end|>") for text in texts)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        raw_2 = theirs(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]
    calibrated = (raw_2 - theirs.config.reward_shift) / theirs.config.reward_scale
    samples = [Sample(tuple(Message(**turn) for turn in turns[:-1]), turns[-1]["content"]) for turns in (TURNS, LONG)]
    torch.testing.assert_close(calibrated, torch.tensor(load_reward(folder).score(samples)), rtol=0, atol=1e-5)


def test_the_folder_is_ours_as_before(tmp_path):
    model = reward_model(torch.bfloat16)
    folder = saved(tmp_path / "rm", model)
    again = RewardModel.from_pretrained(folder)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert AutoModel.from_pretrained(folder).dtype == torch.bfloat16
    assert AutoConfig.from_pretrained(folder).architectures == ["Qwen2ForSequenceClassification"]
    told = ModelSection(path=str(folder))
    assert load_reward_model(folder, told).pooling == "end_token" and load_critic(folder, told).head.weight.sum() == 0
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors", "head.safetensors", "reward_config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("pooling", sorted(set(POOLINGS) - {"end_token"}))
def test_another_pooling_is_refused_by_the_stock_class(tmp_path, pooling):
    folder = saved(tmp_path, reward_model(pooling=pooling))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert RewardModel.from_pretrained(folder).pooling == pooling


def test_a_critic_is_refused_by_the_stock_class(tmp_path):
    folder = saved(
        tmp_path,
        Critic(
            LlamaModel(
                LlamaConfig(
                    vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
                )
            )
        ),
    )
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert Critic.from_pretrained(folder).head.weight.shape == (1, 16)


def test_a_class_that_reads_elsewhere_refuses(tmp_path):
    """BERT's reads a pooled first token through a head of its own."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = saved(tmp_path, RewardModel(BertModel(BertConfig(vocab_size=259, **shape))))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert RewardModel.from_pretrained(folder).head.weight.shape == (1, 16)


def adapted(folder, load, **options):
    """A reward model or critic with an adapter that is not at its start, and its folder."""
    base = save_causal_lm(folder / "base")
    told = ModelSection(path=str(base), adapter="lora")
    torch.manual_seed(3)
    model = load(base, told)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "head.weight":
            torch.nn.init.normal_(parameter, std=0.3)
    for name, value in options.items():
        getattr(model, name)(value)
    return model, saved(folder / "adapter", model)


@pytest.mark.since("5.19")  # before, it leaves an adapter's head behind
def test_the_stock_class_scores_an_adapter_as_ours_does(tmp_path):
    ours, folder = adapted(tmp_path, load_reward_model)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    ids = torch.tensor([[5, 6, 7, 258]])
    with torch.no_grad():
        expected = ours.eval()(ids, torch.ones_like(ids))
        torch.testing.assert_close(theirs(input_ids=ids).logits[:, 0], expected)
        again = RewardModel.from_pretrained(folder)
        assert torch.equal(again(ids, torch.ones_like(ids)), expected)
    again.load_weights(folder)
    again.save_pretrained(tmp_path / "twice")
    for name in ("adapter_config.json", "adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (folder / name).read_bytes(), name
    critic = load_critic(folder, ModelSection(path=str(folder), adapter="lora"))
    assert not any("modules_to_save" in name for name in critic.state_dict())


def test_peft_alone_scores_an_adapter_as_ours_does(tmp_path):
    """With names of the body alone PEFT would take the head and leave the adapter at its start, with a warning."""
    ours, folder = adapted(tmp_path, load_reward_model)
    ids = torch.tensor([[5, 6, 7, 258]])
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    on_base = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        expected = ours.eval()(ids, torch.ones_like(ids))
        for model in (theirs, on_base):
            torch.testing.assert_close(model(input_ids=ids).logits[:, 0], expected)
    card.write(folder, "a reward model", "Made by a test.")
    scores(folder)


def test_an_adapter_that_was_saved_with_names_of_the_body_still_loads(tmp_path):
    ours, folder = adapted(tmp_path, load_reward_model)
    tensors = load_file(folder / "adapter_model.safetensors")
    former = {key.replace("base_model.model.model.", "base_model.model."): value for key, value in tensors.items()}
    assert former.keys() != tensors.keys()
    save_file(former, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    again, ids = RewardModel.from_pretrained(folder), torch.tensor([[5, 6, 7, 258]])
    with torch.no_grad():
        assert torch.equal(again(ids, torch.ones_like(ids)), ours.eval()(ids, torch.ones_like(ids)))


@pytest.mark.since("5.19")
@pytest.mark.parametrize(
    ("load", "options"), [(load_critic, {}), (load_reward_model, {"set_pooling": "mean"})], ids=["critic", "mean"]
)
def test_an_adapter_with_another_head_is_refused_by_the_stock_class(tmp_path, load, options):
    ours, folder = adapted(tmp_path, load, **options)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1), folder
        )
    assert type(ours).from_pretrained(folder).head.weight.shape == (1, 16)
