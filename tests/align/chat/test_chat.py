"""`align chat` without a terminal, line by line, on tiny models; how it looks in one is `test_terminal.py`."""

import io
import json
import sys

import pytest

from align import cli
from align.chat import batch
from align.chat.conversation import ChatError, Said
from align.chat.screen import Replies, Screen, SideBySide
from align.chat.session import Session
from align.chat.speaker import Speaker
from align.models.load import load_saved
from align.models.named import called
from align.runs.seeding import derive
from align.runtime.errors import StorageError
from align.runtime.lock import FolderInUseError, locked
from align.runtime.terminal import printable
from data_formats import Demonstration, Message, Prompt, read, write_jsonl
from reward.protocol import Sample
from reward.sources import FunctionReward, load_reward
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from tests.align.chat.run_folder import finished, write_adapter, write_run, write_without_turns
from tests.commands import ROOT
from tests.documents import DOCS, commands
from tests.tiny_models import byte_tokenizer

SMALL = ("--max-tokens", "12", "--seed", "5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def speaker(run):
    return Speaker(str(run / "ppo/model"), "ppo")


@pytest.fixture
def chat(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def say(*words, lines=(), code=0):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        assert cli.main(["chat", *map(str, words)]) == code
        return capsys.readouterr()

    return say


def saved(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(row.messages) for row in read(path, Demonstration).records] == [
        [Message(**turn) for turn in row["messages"]] for row in rows
    ]
    return rows


def test_a_chat_of_two_models_with_every_command(run, chat, tmp_path):
    lines = [
        "/system Be brief.",
        "one",
        "/undo",
        "two",
        "three",
        "/retry",
        "/save talk.jsonl",
        "//four",
        "/temperature 0",
    ]
    lines += ["five", "/save", "/reset", "six", "/save last.jsonl", "/help", "/quit", "seven"]
    out = chat(run, "--against", "sft", *SMALL, lines=lines).out
    assert "taken back: one" in out and "/undo" in out and out.count("tiny/ppo: ") == out.count("tiny/sft: ") == 7
    assert out.count("reward ") == 14

    ppo, sft = saved(tmp_path / "talk.jsonl")
    assert (ppo["model"], sft["model"]) == ("tiny/ppo", "tiny/sft")
    asked = [turn["content"] for turn in ppo["messages"] if turn["role"] != "assistant"]
    assert asked == ["Be brief.", "two", "three", "/four", "five"]  # what this chat wrote it may write again
    assert ppo["messages"] != sft["messages"]
    (last, _) = saved(tmp_path / "last.jsonl")
    assert [turn["content"] for turn in last["messages"][:2]] == ["Be brief.", "six"]

    # Each model saw its own replies; the reply is the engine's own, and the reward what it says of that text.
    reward = load_reward(run / "rm/model")
    for row, stage in ((ppo, "ppo"), (sft, "sft")):
        speaker, turns = Speaker(str(run / stage / "model"), stage), [Message(**turn) for turn in row["messages"]]
        prompt = speaker.encode([turns[:-1]])[0]
        greedy = SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=speaker.format.stop_ids)
        (completion,) = speaker.engine.generate([prompt], greedy)
        assert speaker.text(completion.token_ids) == turns[-1].content
        sample = Sample(tuple(turns[:-1]), turns[-1].content, tuple(prompt), completion.token_ids)
        assert reward.score([sample]) == row["rewards"][-1:]


def test_a_seed_makes_replies_again_and_a_retry_draws_anew(run, chat):
    first = chat(run, *SMALL, lines=["one", "two"]).out
    assert first == chat(run / "ppo", *SMALL, lines=["one", "two"]).out
    again = chat(run / "ppo/model", *SMALL, lines=["one", "/retry"]).out.splitlines()
    assert first.startswith(again[0]) and first != "\n".join([*again, ""])


def test_a_reply_is_stopped_and_stays(speaker):
    prompt, heard = speaker.encode([[Message("user", "hello")]])[0], []

    def hear(text):
        heard.append(text)
        if len(heard) == 3:
            raise KeyboardInterrupt

    params = SamplingParams(max_new_tokens=60, seed=derive(5, "chat", 0))
    ids, ended = speaker.reply(prompt, params, hear)
    assert ended == "stopped" and heard[-1] == speaker.text(ids) and 3 <= len(ids) < 60
    whole, _ = speaker.reply(prompt, params, lambda text: None)
    assert whole[: len(ids)] == ids


def test_what_a_model_writes_cannot_steer_the_terminal(capsys):
    hostile = "\x1b[2Jred\x9b31m\r\x07ok"
    with Replies(["a"]) as shown:
        shown.begin(0)
        shown.hear(0, hostile[:5])
        shown.end(0, Said(hostile, "length", 1.0))
    plain = capsys.readouterr().out
    with SideBySide(["a\x1b", "b"]) as shown:
        for at in range(2):
            shown.begin(at)
            shown.hear(at, hostile)
            shown.end(at, Said(hostile, "stopped", -0.5))
    for text in (plain, columns := capsys.readouterr().out):
        assert not {*text} & {*"\x1b\x9b\r\x07"} and "\\u001b[2Jred" in text
    assert "[cut at the limit of tokens]\nreward +1.000" in plain
    assert columns.count("[stopped]") == 2 and columns.count("reward -0.500") == 2


def test_a_reply_that_its_decoder_changes_is_shown_whole(capsys):
    with Replies(["a"]) as shown:
        shown.begin(0)
        for text in ("I do n", "I don't", "I don't know"):
            shown.hear(0, text)
        shown.end(0, Said("I don't know"))
    assert capsys.readouterr().out == "I do n\nI don't know\n"


def test_a_file_of_prompts_goes_on_where_it_was_killed(run, speaker, chat, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "AT_ONCE", 2)
    prompts = [Prompt((Message("user", f"q{at} \x1b"),)) for at in range(5)]
    write_jsonl(tmp_path / "in.jsonl", prompts)
    ask = (run, "--against", "sft", "--system", "Short.", *SMALL, "--prompts", "in.jsonl", "--out")
    assert "replies to 5 prompts\n" in chat(*ask, "whole.jsonl").out
    whole = (tmp_path / "whole.jsonl").read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 10 and {row["model"] for row in rows} == {"tiny/ppo", "tiny/sft"}
    assert rows[2]["prompt"][1]["content"] == rows[3]["prompt"][1]["content"] == "q1 \x1b"
    assert all(isinstance(row["reward"], float) and 0 < row["tokens"] <= 12 for row in rows)
    assert len(read(tmp_path / "whole.jsonl", Demonstration).records) > 0

    assert "5 prompts, 5 of them from before" in chat(*ask, "whole.jsonl").out

    def answer(name, told=lambda done: None, most=4):
        params = SamplingParams(max_new_tokens=most, seed=1)
        return batch.answer_prompts([speaker], None, params, prompts, tmp_path / name, told)

    def killed(done):
        if done:
            raise KeyboardInterrupt

    assert answer("once.jsonl") == 0
    with pytest.raises(KeyboardInterrupt):
        answer("half.jsonl", killed)
    pieces = tmp_path / "half.jsonl.pieces"
    assert not (tmp_path / "half.jsonl").exists()
    with locked(pieces, ["chat"]), pytest.raises(FolderInUseError, match="another process is running 'chat'"):
        answer("half.jsonl")
    with pytest.raises(StorageError, match=r"other: prompts, sampling or judge\): remove it"):
        answer("half.jsonl", most=5)
    assert answer("half.jsonl") == 2 and not pieces.exists()
    assert (tmp_path / "half.jsonl").read_bytes() == (tmp_path / "once.jsonl").read_bytes()
    (tmp_path / "torn.jsonl").write_text("".join((tmp_path / "once.jsonl").read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(ChatError, match=r"ends after 3 of 5 replies"):
        answer("torn.jsonl")
    (tmp_path / "mine.txt").write_text("my notes\n")
    for name, told in (("half.jsonl", "line 1 is no reply of this model"), ("mine.txt", "exists and holds no replies")):
        before = (tmp_path / name).read_text()
        with pytest.raises(ChatError, match=told):
            batch.answer_prompts([speaker], None, SamplingParams(max_new_tokens=12), prompts, tmp_path / name)
        assert (tmp_path / name).read_text() == before
    short = SamplingParams(max_new_tokens=2)
    batch.answer_prompts([speaker], None, short, prompts[:1], tmp_path / "judged.jsonl")
    with pytest.raises(ChatError, match=r"line 1 is no reply .* judged in this way"):  # not taken for one with scores
        batch.answer_prompts([speaker], FunctionReward(len, "length"), short, prompts[:1], tmp_path / "judged.jsonl")
    with pytest.raises(ChatError, match=r"prompt 1 has \d+ tokens, and with a reply of 500 \(--max-tokens\) more th"):
        batch.answer_prompts([speaker], None, SamplingParams(max_new_tokens=500), prompts, tmp_path / "long.jsonl")


@pytest.mark.slow
def test_an_adapter_is_asked_on_its_base(run, chat, tmp_path):
    base = run / "sft/model"
    write_adapter(tmp_path / "lora", base)
    options = ("--max-tokens", 12, "--temperature", 0)
    shown = chat("lora", *options, lines=["hello"]).out
    assert shown != chat(base, *options, lines=["hello"]).out

    merged = load_saved(tmp_path / "lora", byte_tokenizer()).merge_and_unload()
    speaker = Speaker(str(base), "sft")
    params = SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=speaker.format.stop_ids)
    (completion,) = HFEngine(merged, 0).generate(speaker.encode([[Message("user", "hello")]]), params)
    assert shown.startswith(printable(speaker.text(completion.token_ids)))


def test_what_cannot_be_asked_is_one_sentence(run, chat, tmp_path):
    (tmp_path / "begun/sft").mkdir(parents=True)
    (tmp_path / "begun/sft/recipe.yaml").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    for words, told in (
        (["nowhere/x/model"], "model folder nowhere/x/model does not exist"),
        (["empty"], "empty holds no model (config.json or adapter_config.json), and no stage of a run"),
        (["judge"], "judge is a classifier, which scores replies and writes none"),
        (["begun"], "begun is a run without a finished policy (base, sft, rejection, dpo or ppo)"),
        ([run / "rm/model"], "is a reward model, which scores replies and writes none"),
        ([run / "rm"], "is a reward model, which scores replies and writes none"),
        ([run, "--against", "rejection"], "has no finished stage 'rejection' with a model"),
        (["empty", "--against", "sft"], "empty holds no model"),
        ([run, "--reward", "begun"], "begun is a run without a finished reward model (pmp or rm)"),
        ([run, "--out", "x.jsonl"], "--prompts and --out go together"),
        ([run, "--temperature", "-1"], "temperature must be 0 (greedy) or a positive number"),
        ([run, "--against", "sft", "--engine", "vllm"], "vLLM holds one model in a process"),
    ):
        shown = chat(*words, code=1)
        (line,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        assert told in line and shown.out == ""
    assert "there is no command /nothing" in chat(run, lines=["/nothing"], code=1).err


def test_a_line_that_cannot_be_followed_changes_nothing(speaker, tmp_path):
    session = Session([speaker], None, SamplingParams(max_new_tokens=4), "", Screen(["ppo"]))
    (tmp_path / "mine").write_text("")
    for line, told in (
        ("x" * 600, "ppo: the prompt has 6"),
        ("/undo", "nothing was said yet"),
        ("/retry", "nothing was said yet"),
        ("/save", "nothing was said yet"),
        ("/temperature hot", "/temperature wants a number"),
    ):
        with pytest.raises(ChatError, match=told):
            session.take(line)
    session.take("hello")
    with pytest.raises(ChatError, match="mine exists; name another file"):
        session.take(f"/save {tmp_path}/mine")
    assert [one.question for one in session.conversation.exchanges] == ["hello"]


def test_a_model_without_turns_completes_each_line(tmp_path, chat):
    folder = write_without_turns(tmp_path / "raw")
    speaker = Speaker(str(folder), "raw")
    assert not speaker.has_turns and speaker.encode([[Message("user", "ab")]]) == [speaker.tokenizer("ab")["input_ids"]]
    once = chat(folder, *SMALL, "--temperature", 0, lines=["ab", "ab"]).out
    assert once[: len(once) // 2] * 2 == once
    assert "knows no turns, so it has no system turn" in chat(folder, "--system", "x", lines=["ab"], code=1).err


def test_names_on_the_screen(run, tmp_path):
    assert [called(path) for path in (run / "ppo/model", tmp_path, "Qwen/Qwen2-0.5B")] == [
        "tiny/ppo",
        tmp_path.name,
        "Qwen/Qwen2-0.5B",
    ]
    assert finished(tmp_path / "r", "sft") == tmp_path / "r/sft/model"


def test_every_command_of_the_page_and_of_readme(run, chat, tmp_path, capsys, monkeypatch):
    """As it stands there, but for the run's name and the length of a reply."""
    monkeypatch.setattr("rollouts.openai.require_package", lambda who, package: None)
    (tmp_path / "runs").mkdir()
    for name in ("quickstart", "mine"):
        (tmp_path / "runs" / name).symlink_to(run)
    write_jsonl(tmp_path / "questions.jsonl", [Prompt((Message("user", "?"),))])
    asked = {"align chat": 0, "align serve": 0}
    for words in (*commands(DOCS / "chat.md"), *commands(ROOT / "README.md")):
        if " ".join(words[:2]) not in asked:
            continue
        asked[" ".join(words[:2])] += 1
        if words[1] == "chat":
            assert chat(*words[2:], "--max-tokens", 4, lines=["hello", "/undo"]).out
        else:
            assert cli.main([*words[1:], *([] if "--print" in words else ["--print"])]) == 0
            assert f"rollouts.openai --model {words[2]}/ppo/model" in capsys.readouterr().out
    assert min(asked.values()) > 2 and (tmp_path / "replies.jsonl").is_file()
