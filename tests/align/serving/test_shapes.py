import math

import pytest

from align.serving.shapes import MOST_REPLIES, RequestError, asked_as_vllm, asked_to_score
from data_formats.records import Message
from reward.endpoint import vllm_request
from reward.protocol import Sample, Verdict

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "r"}]}]


class Text:
    name = "text"


class Ids:
    name = "ids"

    def token_rows(self, samples):
        return [[1, 2, 3] for _ in samples]

    class tokenizer:
        def __new__(cls, texts, add_special_tokens):
            return {"input_ids": [[7] * len(text) for text in texts]}


def test_our_shape_takes_items_of_three_kinds():
    ask = (Message("user", "q"),)
    body = {"inputs": [{"prompt": "q", "completions": ["a", "b"], "columns": {"n": 1}}, {"messages": TURNS}]}
    asked = asked_to_score(body, Text())
    assert asked.samples() == [
        Sample(ask, "a", columns={"n": 1}),
        Sample(ask, "b", columns={"n": 1}),
        Sample(ask, "r"),
    ]
    assert (asked.replies, asked.length) == (3, 2)
    (alone,) = asked_to_score({"prompt": TURNS[:1], "completion": " a\n"}, Text()).samples()
    assert alone == Sample(ask, " a\n")
    assert asked.answer(Verdict([1.0, 2.0]), []) == {"scores": [1.0, 2.0]}
    assert asked.answer(Verdict([1.0], {"x": [2.0]}), []) == {"scores": [1.0], "parts": {"x": [2.0]}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "must be a JSON object"),
        ({}, '"completion", a text'),
        ({"inputs": "a"}, "must be a list"),
        ({"inputs": ["a"]}, r"inputs\[0\] must be an object"),
        ({"prompt": "q", "completion": 1}, '"completion", a text'),
        ({"prompt": [], "completion": "a"}, "list of turns"),
        ({"prompt": [{"role": "judge", "content": "a"}], "completion": "a"}, r"prompt\[0\] must have"),
        ({"messages": TURNS[:1]}, "end with the assistant's reply"),
        ({"prompt": "q", "completion": "a", "columns": [1]}, "columns must be an object"),
        ({"inputs": [{"prompt": "q", "completions": ["a"] * (MOST_REPLIES + 1)}]}, "send several"),
    ],
)
def test_what_is_no_request_of_ours_is_one_sentence(body, said):
    with pytest.raises(RequestError, match=said):
        asked_to_score(body, Text())


def test_vllms_shapes():
    asked = asked_as_vllm({"messages": TURNS, "use_activation": False}, Text(), "m", pooling=False)
    assert asked.samples() == [Sample((Message("user", "q"),), "r")]
    answer = asked.answer(Verdict([2.0]), asked.samples())
    assert answer["data"] == [{"index": 0, "label": "LABEL_0", "probs": [2.0], "num_classes": 1}]
    assert answer["object"] == "list" and answer["model"] == "m" and answer["id"].startswith("classify-")
    asked = asked_as_vllm({"input": ["ab", "c"]}, Ids(), "m", pooling=True)
    samples = asked.samples()
    assert [sample.completion_ids for sample in samples] == [(7, 7), (7,)] and asked.replies == 2
    answer = asked.answer(Verdict([0.0, -1000.0]), samples)
    assert answer["data"] == [
        {"index": 0, "object": "pooling", "data": [0.5]},
        {"index": 1, "object": "pooling", "data": [math.exp(-1000)]},
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
    (ids,) = asked_as_vllm({"messages": TURNS}, Ids(), "m", pooling=True).samples()
    assert (ids.prompt_ids, ids.completion_ids) == ((), (1, 2, 3))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, '"input" must be a text'),
        ({"input": []}, '"input" must be a text'),
        ({"input": ["a", [1]]}, "mix"),
        ({"input": [True]}, '"input" must be a text'),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "a", "task": "embed"}, "not supported"),
        ({"input": "a", "encoding_format": "base64"}, "not supported"),
    ],
)
def test_what_vllm_can_and_we_cannot_is_refused(body, said):
    with pytest.raises(RequestError, match=said):
        asked_as_vllm(body, Ids(), "m", pooling=True)


def test_raw_input_is_for_models_of_ours():
    with pytest.raises(RequestError, match="reads prompt and reply apart"):
        asked_as_vllm({"input": "a"}, Text(), "m", pooling=True)


@pytest.mark.slow
@pytest.mark.needs("vllm")
def test_the_fields_are_vllms():
    """What we answer fills vLLM's own classes, field by field, and so does what our client asks."""
    from vllm.entrypoints.pooling.classify.protocol import ClassificationChatRequest, ClassificationResponse
    from vllm.entrypoints.pooling.pooling.protocol import PoolingChatRequest, PoolingResponse

    body = vllm_request(Sample((Message("user", "q"),), "r"))
    for kind in (ClassificationChatRequest, PoolingChatRequest):
        read = kind.model_validate(body)
        assert read.use_activation is False and list(map(dict, read.messages)) == body["messages"]
        assert kind.model_fields.keys() >= body.keys() and not read.model_extra
    for kind, pooling in ((ClassificationResponse, False), (PoolingResponse, True)):
        asked = asked_as_vllm({"messages": TURNS}, Text(), "m", pooling)
        answer = asked.answer(Verdict([1.5]), asked.samples())
        read = kind.model_validate(answer).model_dump()
        assert read | {"usage": None} == answer | {"usage": None}
        assert answer["usage"].items() <= read["usage"].items()
