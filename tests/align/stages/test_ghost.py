"""Ghost Attention: which conversations, what is asked, what is trained, and that a resumed run trains on the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.load import load_records
from align.recipe.supervised_sections import GhostSection
from align.stages import ghost
from align.stages.ghost import choose, ghost_demonstrations, multi_turn
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.records import Demonstration, Message, ToolCall
from rollouts.errors import RolloutError
from rollouts.scripted import ScriptedEngine
from tests.align.stages.sft_case import lines, recipe

LOUD = {"text": "Shout from now on.", "short": "Shout."}


def talk(*roles, **options):
    return Demonstration(tuple(Message(role, f"{role[0]}{at}") for at, role in enumerate(roles)), **options)


TURNS = ("user", "assistant", "user", "assistant")


def test_only_plain_conversations_of_two_user_turns_take_part():
    assert multi_turn(talk(*TURNS)) and multi_turn(talk("system", *TURNS)) and multi_turn(talk(*TURNS, "user"))
    calling = Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))
    for other in (
        talk("user", "assistant"),
        talk("system", "user", "assistant", "user"),
        talk("user", "user", "assistant", "assistant"),
        talk(*TURNS, tools=("{}",)),
        talk("user", "assistant", "tool", "user", "assistant"),
        Demonstration((Message("user", "a"), calling, Message("user", "b"), Message("assistant", "c"))),
    ):
        assert not multi_turn(other), other


def test_the_share_is_of_the_multi_turn_conversations_and_fixed_by_the_seed():
    demos = [talk(*TURNS) if number % 2 else talk("user", "assistant") for number in range(200)]
    section = GhostSection(instructions=[LOUD, "Be brief."], share=0.3)
    found = choose(demos, section, 7)
    assert len(found) == 30 and [one.index for one in found] == sorted({one.index for one in found})
    assert all(one.index % 2 for one in found)
    assert found == choose(demos, section, 7) != choose(demos, section, 8)
    forms = {(one.sampled, one.trained) for one in found}
    assert forms == {("Shout from now on.", "Shout."), ("Shout from now on.",) * 2, ("Be brief.", "Be brief.")}
    whole = GhostSection(instructions=[LOUD], share=1.0)
    shortened = sum(one.trained == "Shout." for one in choose([talk(*TURNS)] * 400, whole, 0))
    assert 160 < shortened < 240  # half of 400, four standard deviations
    with pytest.raises(EmptyDatasetError, match="none of the training conversations has two user turns"):
        choose([talk("user", "assistant")], section, 7)


@pytest.fixture
def case(tmp_path):
    """Section, conversations, model and tokenizer of a small stage."""
    made = recipe(tmp_path, turns=2, ghost_attention={"instructions": [LOUD], "share": 0.5})
    demos, _ = load_records(made.sft.data, Demonstration, made)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    return made.sft, demos, {"model": model, "tokenizer": tokenizer, "device": torch.device("cpu"), "seed": 5}


def answering(text, calls):
    """An engine that gives `text` and the end token, and keeps what it was asked."""

    def make(kind, model, *, pad_token_id, batch_size):
        engine = ScriptedEngine(lambda prompt, number: text)
        calls.append(engine)
        return engine

    return make


def test_asked_with_the_instruction_everywhere_and_trained_with_it_once(case, tmp_path, monkeypatch):
    section, demos, options = case
    tokenizer, engines = options["tokenizer"], []
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    monkeypatch.setattr(ghost, "make_engine", answering([*tokenizer("AYE")["input_ids"], end], engines))
    plain, instructed, counts = ghost_demonstrations(demos, section, tmp_path / "out", **options)
    assert counts == {"chosen": 12, "trained": 12}
    assert len(plain) == 12 and len(instructed) == 12
    ((asked, _),) = engines[0].calls
    rows = lines(tmp_path / "out/ghost.jsonl")
    for ids, row, demo in zip(asked, rows, instructed, strict=True):
        original = demos[row["index"]]
        assert original not in plain
        first, reply, second, _ = (message.content for message in original.messages)
        said = (f"Shout from now on.\n\n{first}", reply, f"Shout from now on.\n\n{second}")
        turns = zip(("user", "assistant", "user"), said, strict=True)
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        assert tokenizer.decode(ids) == text + "<|im_start|>assistant\n"
        trained = [f"{row['trained_instruction']}\n\n{first}", reply, second, "AYE"]
        assert [message.content for message in demo.messages] == trained
        assert [message["content"] for message in row["messages"]] == trained
        assert demo.category == original.category
    assert {row["trained_instruction"] for row in rows} == {"Shout from now on.", "Shout."}
    assert plain == [demo for index, demo in enumerate(demos) if index not in {row["index"] for row in rows}]


def test_a_resumed_run_takes_what_was_sampled(case, tmp_path, monkeypatch):
    section, demos, options = case
    first = ghost_demonstrations(demos, section, tmp_path / "out", **options)
    written = (tmp_path / "out/ghost.jsonl").read_bytes()
    other = ghost_demonstrations(demos, section, tmp_path / "other", **options)
    assert (tmp_path / "other/ghost.jsonl").read_bytes() == written and other == first  # a seed fixes all of it

    def never(*args, **kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr(ghost, "make_engine", never)
    assert ghost_demonstrations(demos, section, tmp_path / "out", **options) == first


def test_what_cannot_be_trained_stays_as_it_was_and_is_counted(case, tmp_path, monkeypatch):
    section, demos, options = case
    end = options["tokenizer"].convert_tokens_to_ids("<|im_end|>")
    for text, reason in (([65] * 9, "reply cut at max_completion_length"), ([end], "empty reply")):
        monkeypatch.setattr(ghost, "make_engine", answering(text, []))
        plain, instructed, counts = ghost_demonstrations(demos, section, tmp_path / reason, **options)
        assert (plain, instructed) == (demos, [])
        assert counts == {"chosen": 12, "trained": 0, reason: 12}
    short = section.model_copy(update={"max_length": 60})
    monkeypatch.setattr(ghost, "make_engine", answering([end], []))
    plain, _, counts = ghost_demonstrations(demos, short, tmp_path / "short", **options)
    assert plain == demos and counts == {"chosen": 12, "trained": 0, "prompt longer than max_length": 12}


def test_a_file_of_other_conversations_or_a_torn_one_is_refused(case, tmp_path):
    section, demos, options = case
    ghost_demonstrations(demos, section, tmp_path, **options)
    file = tmp_path / "ghost.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"ghost\.jsonl cannot be read .*remove it to sample again"):
        ghost_demonstrations(demos, section, tmp_path, **options)
    file.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=r"ghost\.jsonl was sampled for other conversations or instructions"):
        ghost_demonstrations(demos, section, tmp_path, **options)


def test_a_failing_engine_leaves_no_file(case, tmp_path, monkeypatch):
    section, demos, options = case

    def broken(*args, **kwargs):
        raise RolloutError("no room")

    monkeypatch.setattr(ghost, "make_engine", broken)
    with pytest.raises(RolloutError, match="no room"):
        ghost_demonstrations(demos, section, tmp_path, **options)
    assert not (tmp_path / "ghost.jsonl").exists()
