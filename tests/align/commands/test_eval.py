"""`align eval`: models, runs and files of replies before judges; nothing made twice, every table says who judged."""

import json
import os
from collections import Counter

import pytest

from align import cli
from align.chat import speaker
from align.evaluation import contest
from align.evaluation.table import percent
from align.evaluation.wins import WORTH
from align.runs.run_files import read_run
from reward.judges.functions import FunctionJudge
from reward.judges.protocol import Judgment
from reward.protocol import RewardError
from tests.align.chat.run_folder import write_adapter, write_run
from tests.reward.judges.test_llm import endpoint, longer  # noqa: F401 - a fixture

QUESTIONS = ("say hi", "count to ten", "name a fish", "add 2 and 3", "what is it")
JUDGES = """
def longer(prompts, first, second):
    return [len(a) - len(b) for a, b in zip(first, second)]

def by_length(prompts, completions):
    return [float(len(text)) for text in completions]

def one_score(prompts, completions):
    return [0.0]

def no_idea(prompts, first, second):
    return [None] * len(first)

def of_category(prompts, first, second, category):
    return ["second" if name == "maths" else "tie" for name in category]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture
def asked(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": text, "category": "maths" if at > 2 else "talk"} for at, text in enumerate(QUESTIONS)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "judges.py").write_text(JUDGES)

    def ask(*words, code=0):
        capsys.readouterr()
        assert cli.main(["eval", *map(str, words)]) == code
        return capsys.readouterr()

    return ask


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def replies(file, texts):
    return write_rows(file, [{"prompt": q, "reply": text} for q, text in zip(QUESTIONS, texts, strict=True)])


def test_two_files_by_hand(tmp_path, asked):
    replies(tmp_path / "old.jsonl", ["a", "aa", "aaa", "a", "aa"])
    replies(tmp_path / "new.jsonl", ["bb", "bb", "b", "bbb", "bbb"])
    judges = ("--judge", "judges.py:longer", "--judge", "x=judges.py:of_category")
    shown = asked("old.jsonl", "new.jsonl", "--prompts", "prompts.jsonl", *judges).out
    assert shown.startswith("new against old, judged by the function longer of judges.py: 5 judgments on 5 prompts\n")
    found = json.loads((tmp_path / "eval-old-new/wins.json").read_text())
    (match,) = found["judges"]["longer"]["matches"]
    assert (match["first"], match["second"]) == ("old", "new")
    assert [match[key] for key in ("win", "tie", "loss", "win_share")] == [3, 1, 1, 0.7]
    by_category = {name: [part[key] for key in ("win", "tie", "loss")] for name, part in match["by_category"].items()}
    assert by_category == {"maths": [2, 0, 0], "talk": [1, 1, 1]}
    assert found["judges"]["x"]["matches"][0]["by_category"]["maths"]["win"] == 2  # it was told the category
    assert "judged by the function longer of judges.py" in (tmp_path / "eval-old-new/wins.md").read_text()
    assert "| maths | 2 | 0 | 0 | 100.0 % |" in (tmp_path / "eval-old-new/wins.md").read_text()


def test_models_an_adapter_and_a_file_before_a_reward_and_a_function(tmp_path, asked, run):
    write_adapter(tmp_path / "adapter", run / "sft/model")
    replies(tmp_path / "people.jsonl", ["hello", "1 2 3", "cod", "5", "it"])
    words = (run, tmp_path / "adapter", "people.jsonl", "--prompts", "prompts.jsonl", "--max-tokens", 6)
    shown = asked(*words, "--judge", f"rm={run}", "--judge", "judges.py:by_length", "--out", "out").out
    found = json.loads((tmp_path / "out/wins.json").read_text())
    names = ["toy-ppo", "adapter", "people"]
    assert list(found["contestants"]) == names
    for judge, file in (("rm", "out/judgments/rm.jsonl"), ("by_length", "out/judgments/by_length.jsonl")):
        rows, judged = rows_of(tmp_path / file), found["judges"][judge]
        assert len(rows) == 3 * 5 and len(judged["matches"]) == 3
        for match in judged["matches"]:  # recomputed from the rows
            own = [r for r in rows if (r["first"], r["second"]) == (match["first"], match["second"])]
            counts = Counter(row["judgments"][0]["winner"] for row in own)
            assert [match[key] for key in ("win", "tie", "loss")] == [counts[w] for w in ("second", "tie", "first")]
            for row in own:
                first, second = row["judgments"][0].get("scores", (0, 0))
                assert WORTH[row["judgments"][0]["winner"]] == (second > first) + 0.5 * (first == second)
            assert percent(match["win_share"]) in shown  # in the matrix
        assert {row["model"] for row in judged["ranking"]} == set(names)
    assert found["judges"]["rm"]["judged_by"] == f"the reward model {run}"
    assert found["agreement"]["between"][0]["number"] == 15
    for words in ("what each row won of the column", "ranked by Bradley-Terry", "Krippendorff's alpha"):
        assert words in shown
    texts = [row["completion"] for row in rows_of(tmp_path / "out/replies/toy-ppo.jsonl")]
    assert len(set(texts)) > 1


def test_after_a_kill_nothing_is_asked_twice_and_what_changed_is_made_anew(tmp_path, asked, run, monkeypatch):
    monkeypatch.setattr(contest, "AT_ONCE", 2)
    words = (run / "sft", run, "--prompts", "prompts.jsonl", "--max-tokens", 4, "--judge", "judges.py:longer")
    words += ("--out", "out", "--num-samples", 2)
    calls, loaded, whole = [], [], FunctionJudge.compare

    def compare(self, pairs):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise RewardError("no more")
        return whole(self, pairs)

    monkeypatch.setattr(FunctionJudge, "compare", compare)
    load = speaker.load_saved
    monkeypatch.setattr(speaker, "load_saved", lambda path, names: (loaded.append(path), load(path, names))[1])
    assert "no more" in asked(*words, code=1).err
    assert (len(loaded), len(rows_of(tmp_path / "out/judgments/longer.jsonl"))) == (2, 8)
    with (tmp_path / "out/judgments/longer.jsonl").open("a") as file:
        file.write('{"first": "half of a li')  # a kill
    first = (tmp_path / "out/replies/toy-sft.jsonl").read_bytes()
    asked(*words)
    assert (calls, len(loaded)) == ([4, 4, 2, 2], 2)
    assert len(rows_of(tmp_path / "out/judgments/longer.jsonl")) == 10
    found = json.loads((tmp_path / "out/wins.json").read_text())["judges"]["longer"]["matches"][0]
    assert (found["judgments"], found["prompts"]) == (10, 5)
    asked(*words)
    assert (len(calls), len(loaded)) == (4, 2)
    (tmp_path / "judges.py").write_text(JUDGES + "\n")
    told = asked(*words, "--seed", 1).err
    assert "judgments/longer.jsonl is made anew, since this is not what it was made with: its files" in told
    assert "replies/toy-sft.jsonl is made anew, since this is not what it was made with: sampling" in told
    assert (len(loaded), sum(calls[4:])) == (4, 10)
    assert (tmp_path / "out/replies/toy-sft.jsonl").read_bytes() != first


def test_what_came_to_no_verdict_is_asked_again(tmp_path, asked, monkeypatch):
    replies(tmp_path / "a.jsonl", "abcde")
    replies(tmp_path / "b.jsonl", ["longer"] * 5)
    words = ("a.jsonl", "b.jsonl", "--prompts", "prompts.jsonl", "--judge", "judges.py:longer", "--out", "out")
    calls, whole = [], FunctionJudge.compare

    def compare(self, pairs):
        calls.append(len(pairs))
        found = whole(self, pairs)
        return [[Judgment(None)], *found[1:]] if len(calls) == 1 else found

    monkeypatch.setattr(FunctionJudge, "compare", compare)
    for judged, missing in ((4, 1), (5, 0), (5, 0)):
        asked(*words)
        match = json.loads((tmp_path / "out/wins.json").read_text())["judges"]["longer"]["matches"][0]
        assert (match["judgments"], match["no_verdict"]) == (judged, missing)
    assert calls == [5, 1] and len(rows_of(tmp_path / "out/judgments/longer.jsonl")) == 5


def test_one_policy_of_our_own_table(tmp_path, asked):
    rows = [
        {"prompt": q, "category": "x", "sft_reply": "a", "ppo_reply": "bb", "sampled": {n: [{"reply": n}] * 2}}
        for q in QUESTIONS
        for n in ("ppo",)
    ]
    write_rows(tmp_path / "eval.jsonl", rows)
    words = ("--prompts", "prompts.jsonl", "--judge", "judges.py:longer", "--out", "out")
    asked("eval.jsonl:sft", "eval.jsonl:ppo", *words)
    assert json.loads((tmp_path / "out/wins.json").read_text())["judges"]["longer"]["matches"][0]["win"] == 5
    assert (
        "a row holds replies of sft, ppo: name one of them as FILE:sft"
        in asked("eval.jsonl", "eval.jsonl:ppo", *words, code=1).err
    )
    told = asked("eval.jsonl:ppo", "old=eval.jsonl:sft", *words, "--num-samples", 2, code=1).err
    assert "eval.jsonl has fewer than 2 replies to 5 of the 5 prompts, the first of them 'say hi'" in told


URL = ("--judge-url", "http://127.0.0.1:9", "--judge-model", "m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.jsonl",), "name two models at least"),
        (("a.jsonl", "sub/a.jsonl"), "two models are called 'a': give them names, as in old=… new=…"),
        (
            ("a.jsonl", "short.jsonl"),
            "short.jsonl has no reply to 4 of the 5 prompts, the first of them 'count to ten'",
        ),
        (("a.jsonl", "nowhere.jsonl"), "nowhere.jsonl: no such file of replies"),
        (("a.jsonl", "./nowhere"), "model folder ./nowhere does not exist"),
        (("a.jsonl", "b=a.jsonl", "--judge", "judges.py:longer"), "two judges are called 'longer'"),
        (("a.jsonl", "b=a.jsonl", "--judge", "judges.py:none"), "judges.py has no 'none'"),
        (("a.jsonl", "b=a.jsonl", "--judge", "judges.py"), "name one of them, as in judges.py:NAME"),
        (("a.jsonl", "c.jsonl", "--judge", "few=judges.py:one_score"), "gave 1 scores for 10 replies"),
        (("a.jsonl", "b=a.jsonl", "--judge", "sub"), "sub/config.json is missing"),
        (("a.jsonl", "b=a.jsonl", "--judge-url", "http://127.0.0.1:9"), "--judge-url and --judge-model go together"),
        (
            ("a.jsonl", "b=a.jsonl", *URL, "--judge-key-env", "NOT_THERE"),
            "the environment variable NOT_THERE is not set",
        ),
        (
            ("a.jsonl", "b=a.jsonl", "--judge-url", "http://far.example", "--judge-model", "m"),
            "a tunnel to this machine",
        ),
        (("a.jsonl", "b=a.jsonl", "--rubric", "a.jsonl"), "--rubric is for --judge-url: give that too"),
        (("a.jsonl", "b=a.jsonl", "--documents", "a.jsonl"), "--documents is for --tax: give that too"),
        (("a.jsonl", "b=a.jsonl", "--tax"), "with --tax nothing is judged: leave --prompts out"),
        (
            ("a.jsonl", "b=a.jsonl", "--out", "sub"),
            "sub holds something else (a.jsonl): name another folder with --out",
        ),
        (
            ("a.jsonl", "b=a.jsonl", "--num-samples", 2, "--temperature", 0),
            "greedy replies to a prompt are all the same",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, asked, words, said):
    (tmp_path / "sub").mkdir()
    replies(tmp_path / "a.jsonl", "abcde")
    replies(tmp_path / "sub/a.jsonl", "abcde")
    replies(tmp_path / "c.jsonl", "vwxyz")
    write_rows(tmp_path / "short.jsonl", [{"prompt": QUESTIONS[0], "reply": "x"}])
    shown = asked(*words, "--prompts", "prompts.jsonl", "--judge", "judges.py:longer", code=1)
    assert shown.err.splitlines()[-1].startswith("error: ") and said in shown.err
    assert not list(tmp_path.glob("eval-*/wins.json"))


def test_a_judge_without_a_verdict_is_told(tmp_path, asked):
    replies(tmp_path / "a.jsonl", "abcde")
    replies(tmp_path / "b.jsonl", "vwxyz")
    told = asked("a.jsonl", "b.jsonl", "--prompts", "prompts.jsonl", "--judge", "judges.py:no_idea", code=1).err
    assert "the function no_idea of judges.py has no verdict on any of the 5 pairs of replies" in told
    told = asked("a.jsonl", "b.jsonl", "--prompts", "prompts.jsonl", code=1).err
    assert "say who judges" in told
    (tmp_path / "judges.py").write_text(JUDGES.replace("[None]", "['tie']"))
    asked("a.jsonl", "b.jsonl", "--prompts", "prompts.jsonl", "--judge", "judges.py:no_idea")
    told = asked("a.jsonl", "b.jsonl", "--judge", "judges.py:longer", code=1).err
    assert "name what the models are asked with --prompts" in told


RANKED = """prompt,annotator,model,reply,rank
say hi,ann,old,hi,1
say hi,ann,new,hello,2
say hi,bob,old,hi,1
say hi,bob,new,hello,1
name a fish,ann,old,cod,2
name a fish,ann,new,salmon,1
name a fish,ann,third,no,3
name a fish,bob,new,salmon,1
name a fish,bob,old,cod,2
name a fish,bob,third,no,3
"""


def test_people_alone(tmp_path, asked):
    """What they ranked needs no model: every annotator's order is a judgment."""
    (tmp_path / "votes.csv").write_text(RANKED)
    shown = asked("old", "new", "--judge", "votes.csv").out
    assert "new against old, judged by 2 annotators of votes.csv: 4 judgments on 2 prompts" in shown
    assert "among those of votes: Krippendorff's alpha" in shown
    found = json.loads((tmp_path / "eval-votes/wins.json").read_text())
    (match,) = found["judges"]["votes"]["matches"]
    assert [match[key] for key in ("win", "tie", "loss")] == [2, 1, 1]
    assert found["agreement"]["units"] == 2
    asked("--judge", "votes.csv", "--judge", "again=votes.csv")
    found = json.loads((tmp_path / "eval-votes-again/wins.json").read_text())
    assert list(found["contestants"]) == ["old", "new", "third"] and len(found["judges"]["votes"]["ranking"]) == 3
    (between,) = found["agreement"]["between"]
    assert between["number"] == 4 * 4 and between["equal"] == 14 / 16  # ann and bob differ on one pair, both ways
    assert "name two models at least whose replies were ranked" in asked("old", "--judge", "votes.csv", code=1).err
    told = asked("old", "other", "--judge", "votes.csv", code=1).err
    assert "2 annotators of votes.csv ranked no model called other (known are old, new, third)" in told


def test_people_and_a_language_model_on_the_same_replies(tmp_path, asked, endpoint):  # noqa: F811
    (tmp_path / "votes.csv").write_text(RANKED)
    replies(tmp_path / "old.jsonl", ["hi", "1 2", "cod", "5", "it"])
    replies(tmp_path / "new.jsonl", ["hello", "1 2", "salmon", "five", "is"])
    endpoint.judge = longer
    words = ("old.jsonl", "new.jsonl", "--prompts", "prompts.jsonl", "--judge", "votes.csv", "--out", "out")
    words += ("--judge-url", endpoint.url, "--judge-model", "judge-1")
    shown = asked(*words).out
    assert "new against old, judged by the language model judge-1: 5 judgments on 5 prompts" in shown
    assert "4 judgments on 2 prompts, 3 pairs of replies not judged" in shown
    assert "llm: 8 requests, 800 prompt tokens, 56 completion tokens" in shown
    found = json.loads((tmp_path / "out/wins.json").read_text())
    assert found["judges"]["llm"]["usage"]["requests"] == len(endpoint.seen) == 8  # the same reply is not asked about
    assert found["agreement"]["between"][0]["number"] == 4
    shown = asked(*words, "--judge", "judges.py:longer").out
    assert len(endpoint.seen) == 8 and len(rows_of(tmp_path / "out/judgments/llm.jsonl")) == 5
    assert "llm: 8 answers from before, 800 prompt tokens, 56 completion tokens" in shown  # what it all cost
    told = asked(*words, "--judge-url", "ftp://x", code=1).err
    assert "the address must begin with https://" in told and "Traceback" not in told


RECIPE = """
name: t
output_dir: run
model: {path: org/model}
ppo:
  data: [prompts.jsonl]
  num_iterations: 100
  eval_data: [prompts.jsonl]
  reward: {kind: length, maximum: 3, unit: characters}
  judge: {kind: comparison, function: judges.py:longer}
"""


def test_what_a_recipe_names_as_judge_and_as_reward(tmp_path, asked):
    replies(tmp_path / "a.jsonl", ["a", "aa", "aaa", "aaaa", "a"])
    replies(tmp_path / "b.jsonl", ["bb", "bb", "bbbb", "b", "bbb"])
    (tmp_path / "r.yaml").write_text(RECIPE)
    words = ("a.jsonl", "b.jsonl", "--prompts", "prompts.jsonl")
    asked(*words, "--judge", "r.yaml:ppo.judge", "--judge", "r.yaml:ppo.reward")
    found = json.loads((tmp_path / "eval-a-b/wins.json").read_text())["judges"]
    assert list(found) == ["r.yaml-ppo.judge", "r.yaml-ppo.reward"]
    counts = [[one["matches"][0][key] for key in ("win", "tie", "loss")] for one in found.values()]
    assert counts == [[3, 1, 1], [1, 3, 1]]
    assert "ppo.judge: the recipe names no judge" in asked(*words, "--judge", f"{bare(tmp_path)}:ppo.judge", code=1).err


def bare(folder):
    (folder / "bare.yaml").write_text(RECIPE.partition("  judge:")[0])
    return "bare.yaml"


def test_the_tax_stands_in_the_run_of_the_later_model(tmp_path, asked, run):
    (tmp_path / "plain.txt").write_text("first line of plain text\nand another one\n")
    words = ("--tax", "--documents", "plain.txt", "--block-length", 16)
    shown = asked(run / "sft", run, *words).out
    assert "nats a token" in shown and f"{run}/tax.json: these figures" in shown
    found = json.loads((run / "tax.json").read_text())
    assert (found["before"]["model"], found["after"]["model"]) == ("toy/sft", "toy/ppo")
    change = found["after"]["loss"] - found["before"]["loss"]
    assert found["difference"]["loss"]["difference"] == pytest.approx(change)
    assert (found["source"], found["tasks"]) == (["plain.txt"], {})
    assert found["bytes"] == 40 and found["tokens"] == 41  # of one document, with its end
    assert read_run(run).tax == found
    now = (run / "tax.json").stat().st_mtime
    os.utime(run / "ppo/model/config.json", (now + 5, now + 5))  # trained again
    told = read_run(run)
    assert told.tax == {} and "tax.json was measured before a policy that is there now" in " ".join(told.problems)
    asked(run / "sft", run / "sft", *words, "--out", "out")
    assert json.loads((tmp_path / "out/tax.json").read_text())["difference"]["loss"]["difference"] == 0.0
    told = asked(run / "sft", run, "--tax", code=1).err
    assert "name plain text with --documents: no base stage of a run has held any out" in told
    assert "has trained no policy from another model" in asked(write_bare(tmp_path / "bare", run), *words, code=1).err
    (run / "tax.json").unlink()


def write_bare(folder, run):
    """A run that has a base stage alone."""
    (folder / "base").mkdir(parents=True)
    (folder / "base/model").symlink_to(run / "sft/model")
    for name in ("recipe.yaml", "summary.json"):
        (folder / "base" / name).write_text("{}")
    return folder
