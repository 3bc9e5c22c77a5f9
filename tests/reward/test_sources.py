import math

import pytest
import torch

from align.data.encode import encode_reply
from align.runtime.errors import MissingFileError
from data_formats.chatml import encode, render
from data_formats.records import Message
from reward.classifier import ClassifierReward
from reward.errors import ModelFileError
from reward.model import RewardModel
from reward.protocol import Reward, RewardError, Sample
from reward.scoring import batches_by_length
from reward.sources import FunctionReward, ModelReward, load_reward
from tests.tiny_models import byte_tokenizer, save_causal_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = save_causal_lm(tmp_path_factory.mktemp("base"))
    torch.manual_seed(1)
    model = RewardModel.from_backbone(base)
    path = tmp_path_factory.mktemp("rm")
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def sample(prompt, completion, **changes):
    return Sample(prompt=(Message("user", prompt),), completion=completion, **changes)


TEXTS = [("Hi", "Hello there"), ("Why?", ""), ("A longer question", "No."), ("x", "a long answer " * 3)]


def with_ids(tokenizer, prompt, completion, *, ended=True):
    prompt_ids, _ = encode(tokenizer, render([Message("user", prompt)], add_generation_prompt=True))
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"] + [258] * ended
    return sample(prompt, completion, prompt_ids=tuple(prompt_ids), completion_ids=tuple(ids), finished=ended)


def test_ids_and_text_of_the_same_reply_score_the_same_and_end_at_the_end_token(folder):
    reward = load_reward(folder, batch_size=2)
    assert isinstance(reward, ModelReward)
    assert isinstance(reward, Reward)
    texts = [sample(*pair) for pair in TEXTS]
    ids = [with_ids(reward.tokenizer, *pair) for pair in TEXTS]
    rows = reward.token_rows(texts)
    assert rows == reward.token_rows(ids)
    assert bytes(reward.tokenizer.decode(rows[0]), "utf-8") == (
        b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello there<|im_end|>"
    )
    expected = [reward.model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)).item() for row in rows]
    assert reward.score(texts) == pytest.approx(expected, abs=1e-5)
    assert reward.score(ids) == pytest.approx(expected, abs=1e-5)
    assert reward.score(ids[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


def test_an_unfinished_reply_gets_the_end_token_and_mixed_samples_keep_their_order(folder):
    reward = load_reward(folder)
    tokenizer = reward.tokenizer
    mixed = [with_ids(tokenizer, *TEXTS[0], ended=False), sample(*TEXTS[2]), with_ids(tokenizer, *TEXTS[3])]
    plain = [sample(*TEXTS[i]) for i in (0, 2, 3)]
    assert reward.token_rows(mixed) == reward.token_rows(plain)
    assert reward.score(mixed) == reward.score(plain)
    empty = sample("Hi", "", prompt_ids=(1, 2), completion_ids=(), finished=False)
    assert reward.token_rows([empty]) == [[1, 2, 258]]


def test_control_tokens_typed_in_text_stay_text(folder):
    reward = load_reward(folder)
    (row,) = reward.token_rows([sample("say <|im_end|>", "<|im_end|>\n<|im_start|>user\nthanks")])
    assert row.count(258) == 2
    assert row.count(257) == 2


def test_scoring_puts_the_mode_back_and_keeps_no_graph(folder):
    model = RewardModel.from_pretrained(folder).train()
    reward = ModelReward(model, byte_tokenizer())
    reward.score([sample(*TEXTS[0])])
    assert model.training
    assert reward.score([]) == []
    assert all(value.grad is None for value in model.parameters())


def test_a_loaded_reward_is_frozen(folder):
    assert not any(value.requires_grad for value in load_reward(folder).model.parameters())


def test_a_model_that_gives_nan_is_an_error(folder):
    reward = load_reward(folder)
    reward.model.head.weight.fill_(math.nan)
    with pytest.raises(RewardError, match="reward_model"):
        reward.score([sample(*TEXTS[0])])


def test_batches_cover_every_index_once_and_hold_similar_lengths():
    batches = list(batches_by_length([3, 9, 1, 9, 4], 2))
    assert batches == [[1, 3], [4, 0], [2]]


def test_a_function_gets_conversations_texts_and_columns():
    seen = {}

    def fn(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return torch.tensor([1.0, -2.5])

    samples = [
        sample("q", "a", columns={"category": "maths", "prompts": 1}),
        sample("r", "b", columns={"reference": "4"}),
    ]
    reward = FunctionReward(fn)
    assert reward.score(samples) == [1.0, -2.5]
    assert reward.name == "fn"
    assert isinstance(reward, Reward)
    assert seen == {
        "prompts": [[{"role": "user", "content": "q"}], [{"role": "user", "content": "r"}]],
        "completions": ["a", "b"],
        "category": ["maths", None],
        "reference": [None, "4"],
    }


def test_a_function_without_kwargs_gets_only_what_it_names():
    def right(prompts, completions, reference):
        return [float(answer == text) for answer, text in zip(reference, completions, strict=True)]

    samples = [sample("2+2", text, columns={"reference": "4", "category": "maths"}) for text in ("4", "5")]
    assert FunctionReward(right).score(samples) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1.0], "1 scores for 2"),
        ([1.0, math.nan], "nan"),
        ([math.inf, 0.0], "inf"),
        (None, "None"),
        (["x", 1], "'x' is a text"),
        (["1", "2"], "'1' is a text"),
        ("12", "a str is no list of numbers"),
        ({0.5: "a", 1.0: "b"}, "a dict is no list of numbers"),
        (torch.ones(2, 2), "must give one float a reply"),
        ([10**400, 0], "must give one float a reply"),
    ],
)
def test_wrong_answers_of_a_function_are_named(answer, words):
    with pytest.raises(RewardError, match=words) as caught:
        FunctionReward(lambda prompts, completions: answer, name="mine").score([sample("a", "b")] * 2)
    assert "mine" in str(caught.value)


def test_a_failing_function_is_a_reward_error_with_its_cause():
    def broken(prompts, completions):
        return [1 / 0]

    with pytest.raises(RewardError, match=r"'broken' failed: ZeroDivisionError"):
        FunctionReward(broken).score([sample("a", "b")])


def test_a_generator_that_fails_and_a_function_that_exits_are_reward_errors_too():
    def ends(prompts, completions):
        raise SystemExit(0)

    with pytest.raises(RewardError, match=r"'ends' failed: SystemExit: 0"):
        FunctionReward(ends).score([sample("a", "b")])
    with pytest.raises(RewardError, match=r"'fn' failed: ZeroDivisionError"):
        FunctionReward(lambda prompts, completions: (1 / 0 for _ in prompts), name="fn").score([sample("a", "b")])
    assert FunctionReward(lambda prompts, completions: (0.5 for _ in prompts)).score([sample("a", "b")]) == [0.5]


def test_a_causal_model_is_no_reward_model(tmp_path):
    with pytest.raises(ModelFileError, match=r"lacks 1 weights.*score\.weight"):
        load_reward(save_causal_lm(tmp_path))


def test_nothing_there_is_a_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        load_reward(tmp_path / "nowhere")


def test_a_reward_folder_without_tokenizer_says_so(folder, tmp_path):
    RewardModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(MissingFileError, match="no tokenizer"):
        load_reward(tmp_path)


def test_a_foreign_folder_gives_a_classifier(tmp_path):
    from transformers import Qwen2ForSequenceClassification

    from tests.tiny_models import qwen2_config

    Qwen2ForSequenceClassification(qwen2_config(num_labels=1, pad_token_id=256)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert isinstance(load_reward(tmp_path, batch_size=3), ClassifierReward)


def test_a_reply_that_thinks_is_scored_by_its_text_as_a_reward_model_learns_it(folder):
    """The marks of thinking are tokens where the tokenizer has them, with and without ids."""
    reward = load_reward(folder)
    reward.tokenizer.add_tokens(["<think>", "</think>"])
    text = "<think>\n17*3 = 51\n</think>\n\n51"
    row = reward.token_rows([sample("17*3?", text)])[0]
    prompt_ids, _ = encode(reward.tokenizer, render([Message("user", "17*3?")], add_generation_prompt=True))
    learnt = encode_reply(reward.tokenizer, text)
    assert row == [*prompt_ids, *learnt]
    assert learnt[0] == reward.tokenizer.convert_tokens_to_ids("<think>")
