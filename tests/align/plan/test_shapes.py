"""A config whose numbers are none is refused by name."""

import json

import pytest

from align.plan.shapes import PlanError, find_shape

WHOLE = {
    "model_type": "qwen2",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", "x"),
        ("num_attention_heads", 0),
        ("num_key_value_heads", -1),
        ("hidden_size", None),
        ("vocab_size", 3.5),
        ("head_dim", [8]),
        ("intermediate_size", True),
    ],
)
def test_a_number_that_is_none(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps(WHOLE))
    assert find_shape(str(tmp_path)).head_dim == 4
    (tmp_path / "config.json").write_text(json.dumps(WHOLE | {key: value}))
    with pytest.raises(PlanError, match=f"{key} must be a whole number above 0, is "):
        find_shape(str(tmp_path))


@pytest.mark.parametrize("text", ["[1]", '{"model_type": ["qwen2"]}', "[" * 100_000])
def test_a_config_of_another_kind(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PlanError, match=r"holds no JSON object|is not known|cannot be read"):
        find_shape(str(tmp_path))
