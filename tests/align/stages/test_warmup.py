"""Which replies ppo.critic_warmup_from means, from the files that stages leave and from those of others."""

import json
import logging
from pathlib import Path

import pytest

from align.data.load import load_records
from align.feedback.collect import collect
from align.models.identity import weights_version
from align.recipe.check import run_problems
from align.recipe.collect_section import CollectSection
from align.recipe.errors import RecipeError
from align.runtime.errors import MissingFileError
from align.stages import run_ppo, run_rejection
from align.stages.warmup import files_of, warmup_rollouts
from align.trainers.ppo import checkpoint
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.records import Prompt
from tests.align.stages import rejection_case
from tests.align.stages.test_ppo import recipe, write_rows
from tests.tiny_models import byte_tokenizer

WARM = {
    "critic_warmup_steps": 4,
    "save_steps": 1,
    "save_total_limit": 5,
    "eval_data": ...,
    "ptx_coef": 0,
}  # two iterations
OURS = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 6}
TOKENIZER = byte_tokenizer()


def critic(folder: Path, step: int) -> bytes:
    return (folder / "ppo" / "checkpoints" / f"step-{step}" / "critic" / checkpoint.WEIGHTS_FILE).read_bytes()


def test_a_run_warms_its_critic_up_on_the_replies_of_another_as_that_one_did(tmp_path, caplog):
    made = recipe(tmp_path, **WARM)
    run_ppo.run_ppo(made)
    assert sorted(path.name for path in (tmp_path / "run/ppo/warmup").iterdir()) == ["1.jsonl", "2.jsonl"]
    again = recipe(tmp_path, **WARM, critic_warmup_from=str(tmp_path / "run" / "ppo"))
    again = again.model_copy(update={"output_dir": str(tmp_path / "again")})
    assert not run_problems(again, ["ppo"])
    assert "in 2 iterations over stored replies" in again.ppo.described()
    with caplog.at_level(logging.INFO, "align"):
        run_ppo.run_ppo(again)
    assert "run/ppo: 2 iterations = 1 epoch of 8 prompts" in caplog.text and "otherwise" not in caplog.text
    assert critic(tmp_path / "again", 2) == critic(tmp_path / "run", 2) != critic(tmp_path / "run", 1)
    assert not (tmp_path / "again" / "ppo" / "warmup").exists()


def read(folder: Path, rows: list[dict] | None = None, *, file: str = "replies.jsonl", **changes):
    """What a file of these rows gives, of two replies a prompt and four prompts an iteration; six tokens at most."""
    made = recipe(folder, **WARM | {"critic_warmup_from": str(folder / file)} | changes)
    if rows is not None:
        write_rows(folder / file, rows)
    prompts, _ = load_records(made.ppo.data, Prompt, made)
    path = str(folder / "policy")
    return warmup_rollouts(made, made.ppo, TOKENIZER, prompts, path, folder / "out")


def row(word: str, *replies: dict, **more) -> dict:
    return {"prompt": [{"role": "user", "content": f"say {word}"}], "replies": list(replies), **more}


def said(text: str, **more) -> dict:
    return {"content": text, "score": 1.0, **more}


def ids(text: str, end: int | None = 258) -> tuple[int, ...]:
    return (*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([] if end is None else [end]))


def test_texts_are_encoded_with_the_end_that_they_were_read_without(tmp_path, caplog):
    other = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    rows = [
        row("a", said("one", stop="end"), said("sixsix", stop="length"), said("two", stop="end"), said("left over")),
        row("b", said("cut", stop="other"), said("sixsix")),
        row("q", said("ids", token_ids=list(ids("ids"))), said("of others", tokens=5, token_ids=[1, 2, 3, 4, 5])),
        row("c", said("x"), said("", stop="end"), said("y")),
        row("d", said("", stop="length"), said("z")),
        row("much too long a prompt for fifty tokens of the policy, isn't it", said("x"), said("y")),
    ]
    rows[0]["replies"][3]["tokens"] = 6
    with caplog.at_level(logging.INFO, "align"):
        found = read(tmp_path, [*rows, row("e", said("e"), said("f"))])
    stored = found.stored
    drawn = {
        (prompt.messages[0].content, reply): (reply_ids, finished)
        for prompt, reply, reply_ids, finished in zip(
            stored.prompts, stored.replies, stored.reply_ids, stored.finished, strict=True
        )
    }
    assert drawn["say a", "one"] == (ids("one"), True) and drawn["say a", "sixsix"] == (ids("sixsix", None), False)
    assert drawn["say b", "cut"] == (ids("cut", other), False) and drawn["say b", "sixsix"] == (
        ids("sixsix", None),
        False,
    )
    assert drawn["say q", "ids"] == (ids("ids"), True)
    assert drawn["say q", "of oth"] == (ids("of oth", None), False)  # not its ids, and longer as these
    assert drawn["say c", ""] == ((258,), True)
    assert len(stored) == 12  # six groups: two of a, one each of b, c, e and q
    assert all(prompt.category == "say" for prompt in stored.prompts if prompt.messages[0].content != "say q")
    for reason in ("1 left out: prompts longer", "1 left out: replies without a token", "2 left out: replies beyond"):
        assert reason in caplog.text
    assert "2 iterations = 1.33 epochs of 6 prompts" in caplog.text


def test_replies_of_this_policy_drawn_in_this_way_are_taken_before_others(tmp_path, caplog):
    mine = {"weights": weights_version(recipe(tmp_path).ppo.init_from), "sampling": OURS}
    hot, foreign = mine | {"sampling": OURS | {"temperature": 1.5}}, mine | {"weights": "of others"}
    replies = [said("mine", **mine), said("hot", **hot), said("them", **foreign), said("also", **mine)]
    with caplog.at_level(logging.INFO, "align"):
        found = read(tmp_path, [row(word, *replies) for word in "abcd"])
    assert set(found.stored.replies) == {"mine", "also"} and "otherwise" not in caplog.text
    assert "8 left out: replies of other weights, or drawn in another way" in caplog.text
    with caplog.at_level(logging.INFO, "align"):
        found = read(tmp_path, [row(word, *replies[1:3]) for word in "abcd"])
    assert set(found.stored.replies) == {"hot", "them"}
    assert "all replies were drawn otherwise than this policy draws (temperature 1.5, here 1.0)" in caplog.text


GOOD = [row(word, said("x"), said("y")) for word in "abcd"]
WRONG = {
    "no replies": ([row("a")], "line 1, field 'replies': is empty"),
    "no prompt": ([*GOOD, {"replies": [said("x")]}], "line 5, field 'prompt': the field is missing; found replies"),
    "no text": (
        [row("a", said("x"), {"score": 1})],
        r"field 'replies\[1\]\.content': the field is missing; found score",
    ),
    "ids": ([row("a", said("x", token_ids=["1"]))], r"replies\[0\]\.token_ids': expected token ids"),
    "sampling": ([row("a", said("x"), sampling={"top_p": "0.9"})], "field 'sampling': expected an object of numbers"),
    "too long": (
        [*GOOD, row("e", said("x"), said("seven, at least"))],
        r"line 5, field 'replies\[1\]': a reply of 15 tok",
    ),
    "known too long": (
        [row("a", said("x", tokens=9), said("y"))],
        r"of 9 tokens is longer than .*max_completion_length",
    ),
    "one reply": (
        [row(word, said("x")) for word in "abcd"],
        r"has 0 times 2 replies .* takes 4 .*4 left out: replies be",
    ),
    "few": (GOOD[:3], "has 3 times 2 replies to a prompt"),
    "empty": ([], "has 0 times 2 replies"),
    "no row": (["text"], "line 1: expected a prompt with its replies, found 'text'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_replies_that_cannot_be_learnt_from_are_refused_by_file_and_row(tmp_path, name):
    rows, message = WRONG[name]
    with pytest.raises((DataError, EmptyDatasetError), match=message) as refused:
        read(tmp_path, rows)
    assert "replies.jsonl" in str(refused.value)


def test_folders_of_stages_are_looked_into(tmp_path):
    names = ("ppo/warmup/2.jsonl", "ppo/warmup/10.jsonl", "rejection/rounds/1/samples.jsonl", "collect/items.jsonl")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert files_of(tmp_path / "ppo") == files_of(tmp_path / "ppo/warmup") == [tmp_path / name for name in names[:2]]
    assert files_of(tmp_path / "rejection") == files_of(tmp_path / "rejection/rounds/1") == [tmp_path / names[2]]
    assert files_of(tmp_path / "collect") == files_of(tmp_path / names[3]) == [tmp_path / names[3]]
    for place, message in (("nowhere", "nowhere is not there"), (".", "holds no replies")):
        with pytest.raises(MissingFileError, match=message):
            files_of(tmp_path / place)


def test_what_the_recipe_says_is_checked_before_anything_is_loaded(tmp_path):
    made = recipe(tmp_path, **WARM, critic_warmup_from="rejection")
    assert any("'rejection' is neither in this recipe nor finished" in one for one in run_problems(made, ["ppo"]))
    for named, told in (("sft", "'sft' leaves no replies"), ("nowhere", "no such file or folder nowhere")):
        (problem,) = run_problems(recipe(tmp_path, **WARM, critic_warmup_from=named), ["ppo"])
        assert problem.startswith("ppo.critic_warmup_from: ") and told in problem
    with pytest.raises(
        (RecipeError, ValueError), match=r"critic_warmup_from: .*critic_warmup_steps is 1, an iteration has 2"
    ):
        recipe(tmp_path, critic_warmup_from="replies.jsonl")
    with pytest.raises((RecipeError, ValueError), match="critic_warmup_from"):
        recipe(tmp_path, advantage="rloo", critic=..., critic_warmup_steps=..., critic_warmup_from="replies.jsonl")


@pytest.mark.slow
def test_the_files_that_stages_and_commands_leave_are_read(tmp_path, caplog):
    """A rejection stage's first round and collected replies, both drawn from the policy that ppo starts from."""
    of_rejection = rejection_case.recipe(tmp_path, num_rounds=1)
    run_rejection.run_rejection(of_rejection)
    policy, folder = str(tmp_path / "policy"), tmp_path / "ppo"
    folder.mkdir()
    collected = CollectSection.model_validate_json(
        json.dumps(
            {
                "data": ["prompts.jsonl"],
                "sources": [{"model": policy, "temperature": 1.0, "top_p": 1.0}],
                "num_replies": 4,
                "max_prompt_length": 60,
                "max_completion_length": 40,
                "engine": "hf",
            }
        )
    )
    collect(of_rejection, collected, tmp_path / "collected")
    changes = {"rollout": {"max_prompt_length": 60, "max_completion_length": 40, "top_p": 1.0, "num_generations": 2}}
    prompts, _ = load_records(of_rejection.rejection.data, Prompt, of_rejection)
    for place in ("run/rejection", "collected"):
        named = {"critic_warmup_from": str(tmp_path / place), "rollout_batch_size": 2}
        made = recipe(folder, **WARM | changes | named)
        with caplog.at_level(logging.INFO, "align"):
            found = warmup_rollouts(made, made.ppo, TOKENIZER, prompts, policy, tmp_path / "out")
        assert len(found.stored) == 8 and "otherwise" not in caplog.text
        assert f"{place}: 2 iterations" in caplog.text and "other weights" not in caplog.text
