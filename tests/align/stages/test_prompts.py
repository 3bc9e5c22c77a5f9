"""Prompts that are too long: dropped, or cut by whole exchanges; and what is told of it."""

import json
import logging

import pytest

from align.data.encode import encode_prompt
from align.recipe.errors import RecipeError
from align.recipe.rollout_section import RolloutSection
from align.stages import run_ppo, run_rejection
from align.stages.prompts import check_room, fitting
from data_formats.errors import EmptyDatasetError
from data_formats.records import Message, Prompt
from tests.align.stages import rejection_case
from tests.align.stages.test_ppo import recipe
from tests.align.trainers import ppo_case
from tests.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))
LONG = Prompt((S("s"), U("one"), A("1"), U("two"), A("2"), U("three")), "count", "3", columns={"level": 2})
SHORT = Prompt((U("hi"),))


def size(*messages: Message) -> int:
    return len(encode_prompt(TOKENIZER, messages))


def test_by_default_a_longer_prompt_is_dropped():
    rollout = RolloutSection(max_prompt_length=size(*LONG.messages) - 1)
    assert fitting([LONG, SHORT], TOKENIZER, rollout, "ppo.data") == ([SHORT], {"longer than max_prompt_length": 1})
    rollout = RolloutSection(max_prompt_length=size(*LONG.messages))
    assert fitting([LONG, SHORT], TOKENIZER, rollout, "ppo.data") == ([LONG, SHORT], {})


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (size(S("s"), U("two"), A("2"), U("three")), (S("s"), U("two"), A("2"), U("three"))),
        (size(S("s"), U("two"), A("2"), U("three")) - 1, (S("s"), U("three"))),
        (size(S("s"), U("three")), (S("s"), U("three"))),
    ],
)
def test_truncate_leaves_out_the_oldest_exchanges_and_keeps_system_turn_and_columns(room, left):
    rollout = RolloutSection(max_prompt_length=room, on_overlong_prompt="truncate")
    (cut, short), counts = fitting([LONG, SHORT], TOKENIZER, rollout, "ppo.data")
    assert (cut.messages, short, counts) == (left, SHORT, {"cut to max_prompt_length": 1})
    assert (cut.category, cut.reference, cut.columns) == ("count", "3", {"level": 2})


def test_a_last_turn_that_is_too_long_is_dropped_all_the_same():
    rollout = RolloutSection(max_prompt_length=size(S("s"), U("three")) - 1, on_overlong_prompt="truncate")
    assert fitting([LONG, SHORT], TOKENIZER, rollout, "ppo.data") == ([SHORT], {"longer than max_prompt_length": 1})
    with pytest.raises(EmptyDatasetError, match=r"\(1 longer than max_prompt_length\): check ppo\.data and ppo\.roll"):
        fitting([LONG], TOKENIZER, rollout, "ppo.data")


def test_both_stages_cut_and_say_so(tmp_path, caplog):
    turns = [{"role": role, "content": text} for role, text in (("user", "x" * 60), ("assistant", "y"), ("user", "z"))]
    rows = [{"messages": turns}] * 3 + [{"messages": turns[2:]}]
    rollout = {"max_prompt_length": 50, "max_completion_length": 6, "on_overlong_prompt": "truncate"}
    made = recipe(tmp_path, rollout=rollout, eval_data=[])
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    caplog.set_level(logging.INFO, "align")
    trainer, read = run_ppo.build(made, made.ppo, tmp_path / "out")
    assert [prompt.messages for prompt in trainer.prompts] == [(Message("user", "z"),)] * 4
    assert read["dropped_rows"] == {"cut to max_prompt_length": 3}
    (tmp_path / "other").mkdir()
    made = rejection_case.recipe(tmp_path / "other", rollout={"num_generations": 2, **rollout}, eval_data=[])
    (tmp_path / "other/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, _, told = run_rejection.read_prompts(made, made.rejection, str(tmp_path / "other/policy"), "rejection")
    assert (prompts, told["dropped_rows"]) == (trainer.prompts, read["dropped_rows"])
    for stage in ("ppo", "rejection"):
        assert f"{stage}: 3 rows: cut to max_prompt_length" in caplog.text


def test_replies_need_room_in_the_loaded_model():
    model, rollout = ppo_case.policy(), RolloutSection(max_prompt_length=100, max_completion_length=28)
    room = model.config.max_position_embeddings
    check_room(model, rollout, "ppo")
    with pytest.raises(RecipeError, match=rf"ppo.rollout: .* = {room + 1} is more than the model's .* \({room}\)"):
        check_room(model, rollout.model_copy(update={"max_completion_length": room - 99}), "ppo")
