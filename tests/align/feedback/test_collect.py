"""`align collect` on tiny models: who replies to what, what is left out, what a kill leaves, what is never redone."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from align import cli
from align.data.balance import filled_balanced
from align.feedback import collect as room
from align.feedback.collect import AT_ONCE, collect, different
from align.feedback.items import FeedbackReply, load_items
from align.models.identity import weights_version
from align.models.named import policy_at, speaks_as
from align.recipe import RecipeError, load_recipe
from align.recipe.check import check_recipe
from align.runtime.errors import StorageError
from align.runtime.files import write_json_lines
from tests.align.chat.run_folder import write_adapter, write_run

RECIPE = """\
name: collecting
output_dir: {run}
seed: 3
model: {{path: {run}/sft/model}}
collect:
  data: [{run}/prompts.jsonl]
  sources:
    - model: sft
    - {{model: {run}/adapter, temperature: 1.3, top_p: 0.9}}
    - {{model: {run}/ppo/model, temperature: 0.7}}
  num_prompts: 6
  num_replies: 2
  max_completion_length: 8
"""


PPO = """\
name: half
output_dir: {run}
model: {{path: {run}/sft/model}}
sft: {{data: [x.jsonl], max_length: 64, batch_size: 4, micro_batch_size: 4, learning_rate: 1e-5}}
ppo:
  data: [x.jsonl]
  policy: {{learning_rate: 1e-6}}
  critic: {{learning_rate: 1e-6}}
  num_iterations: 2
  critic_warmup_steps: 2
  reward: [{{kind: length, maximum: 9}}]
collect:
  data: [x.jsonl]
  sources: [{{model: {run}/ppo/checkpoints/step-2}}]
  num_replies: 2
  max_completion_length: 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny")
    write_adapter(run / "adapter", run / "ppo/model")
    rows = [{"prompt": f"question {at}", "tags": [f"tag {at % 3}"], "category": "c"} for at in range(8)]
    rows[5]["tags"] = ["tag 0", "tag 1", "tag 2", "rare"]
    write_json_lines(run / "prompts.jsonl", [*rows, rows[0], {"prompt": "long " * 1000}])
    (run / "recipe.yaml").write_text(RECIPE.format(run=run))
    return run


@pytest.fixture(scope="module")
def collected(run):
    """What a call that is never stopped leaves."""
    recipe = load_recipe(run / "recipe.yaml")
    return collect(recipe, recipe.collect, run / "whole", round=1)


def test_items_have_what_they_promise(run, collected):
    items = load_items(run / "whole/items.jsonl")
    assert collected["items"] == len(items) == 6 and collected["replies"] == 12
    assert collected["prompts"]["read"] == 10
    assert collected["prompts"]["different"] == 9 and collected["prompts"]["fitting"] == 8
    assert collected["prompts"]["tags"] == 4, "every tag is drawn"
    complex_one = next(item for item in items if item.prompt[-1].content == "question 5")
    assert set(complex_one.tags) == {"tag 0", "tag 1", "tag 2", "rare"} and complex_one.round == 1
    sources = Counter(reply.source for item in items for reply in item.replies)
    assert len(sources) == 3, "each source replies somewhere"
    assert all(len({reply.source for reply in item.replies}) == 2 for item in items), "two sources a prompt"
    for reply in (reply for item in items for reply in item.replies):
        if reply.source == "sft":
            assert reply.sampling["temperature"] == 1.0 and reply.sampling["max_tokens"] == 8
            assert reply.weights == weights_version(run / "sft/model")


def test_a_killed_run_goes_on_and_ends_alike(run, collected, tmp_path, monkeypatch):
    recipe, real, calls = load_recipe(run / "recipe.yaml"), room._sampled, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(room, "_sampled", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(recipe, recipe.collect, tmp_path / "out", round=1)
    assert (tmp_path / "out/pieces/0.jsonl").is_file() and not (tmp_path / "out/items.jsonl").exists()
    assert collect(recipe, recipe.collect, tmp_path / "out", round=1) == collected
    assert len(calls) == 4, "the first piece is not made again"
    assert (tmp_path / "out/items.jsonl").read_bytes() == (run / "whole/items.jsonl").read_bytes()
    assert not (tmp_path / "out/pieces").exists()


def test_what_is_there_is_kept_and_never_overwritten(run, collected, capsys, monkeypatch):
    recipe, before = load_recipe(run / "recipe.yaml"), (run / "whole/items.jsonl").stat()
    monkeypatch.setattr(room, "_sampled", None)  # nothing is sampled
    assert collect(recipe, recipe.collect, run / "whole", round=1) == collected
    assert (run / "whole/items.jsonl").stat() == before
    other = recipe.collect.model_copy(update={"num_replies": 3})
    with pytest.raises(StorageError, match=r"in another way \(other: replies\)"):
        collect(recipe, other, run / "whole", round=1)
    (run / "by hand").mkdir()
    shutil.copy(run / "whole/items.jsonl", run / "by hand")
    with pytest.raises(StorageError, match="somebody may have judged them"):
        collect(recipe, recipe.collect, run / "by hand", round=1)


def test_the_command(run, capsys):
    words = ["collect", str(run / "recipe.yaml"), "--out", str(run / "told")]
    words += ["collect.sources=[{model: sft}]", "collect.num_prompts=2", "collect.engine=hf"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "2 of 8 prompts drawn: 4 of their 4 tags occur, 2.50 a prompt (1.38 among all)" in out
    assert "2 items with 4 replies" in out and f"have them judged: align annotate {run}/told/items.jsonl" in out
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 2
    assert cli.main(["collect", str(run / "recipe.yaml"), "collect=null"]) == 1
    assert "has no section 'collect'" in capsys.readouterr().err


def test_near_identical_and_empty_replies_go():
    texts = ["The cat sat on the mat today.", "the cat  sat on the mat today!", " ", "Something else.", "x", "X", "y"]
    dropped = Counter()
    kept = different([FeedbackReply("", text) for text in texts], dropped)
    assert [one.reply for one in kept] == [texts[0], texts[3], "x", "y"]
    assert dropped == {"near-identical replies": 2, "replies without text": 1}


def test_sources_take_turns():
    """Each prompt's replies come from as many sources as it can have, and every pair of sources meets."""
    tasks = room._tasks(300, 3, 2, seed=0)
    own = [set() for _ in range(300)]
    for task in tasks:
        assert task.number == 1 and len(task.prompts) <= AT_ONCE
        for prompt in task.prompts:
            own[prompt].add(task.source)
    pairs = Counter(map(frozenset, own))
    assert len(pairs) == 3 and all(80 < count < 120 for count in pairs.values())
    more = room._tasks(10, 2, 5, seed=0)
    assert sum(task.number * len(task.prompts) for task in more) == 50
    assert {task.number for task in more} == {2, 3}


def test_prompts_without_tags_come_last():
    tags = [(), ("a",), ("a", "b"), (), ("b",)]
    assert filled_balanced(tags, 3, seed=0)[0] == 2
    assert sorted(filled_balanced(tags, 3, seed=0)) == [1, 2, 4]
    assert sorted(filled_balanced(tags, 9, seed=0)) == [0, 1, 2, 3, 4]


def test_check_knows_the_section(run, capsys):
    recipe = str(run / "recipe.yaml")
    assert cli.main(["check", recipe]) == 0
    said = "collect: 2 replies to each of 6 prompts, by sft (temperature 1), "
    assert said in capsys.readouterr().out
    wrong = ["collect.sources=[{model: rm}, {model: base}, {model: ./none}]", "collect.data=[none.jsonl]"]
    with pytest.raises(RecipeError) as error:
        check_recipe(recipe, wrong)
    told = str(error.value)
    assert "collect.data.0.path: no such file none.jsonl" in told
    assert "collect.sources.0.model: 'rm' is a reward model and cannot write" in told
    assert "collect.sources.1.model: stage 'base' is neither in this recipe nor finished" in told
    assert "collect.sources.2.model: no such folder ./none" in told
    with pytest.raises(RecipeError, match="says the same again"):
        check_recipe(recipe, ["collect.sources=[{model: sft, temperature: 0}]"])
    with pytest.raises(RecipeError, match=r"collect.sources.1: is there twice"):
        check_recipe(recipe, ["collect.sources=[{model: sft}, {model: sft}]"])
    assert cli.main(["run", recipe]) == 1
    assert "has no stage to run" in capsys.readouterr().err


def test_a_checkpoint_of_ppo_speaks_as_what_it_began_with(run, tmp_path):
    """Its policy has no tokenizer beside it; an unfinished run has none of the stage's own either."""
    run = write_run(tmp_path / "run")
    (run / "ppo/recipe.yaml").write_text(PPO.format(run=run))
    policy = run / "ppo/checkpoints/step-2/policy"
    shutil.move(run / "ppo/model", policy)
    for file in (*policy.glob("tokenizer*"), *policy.glob("*.jinja")):
        file.unlink()
    recipe = load_recipe(run / "ppo/recipe.yaml", [f"collect.data=[{run}/prompts.jsonl]"])
    write_json_lines(run / "prompts.jsonl", [{"prompt": "one", "tags": [{"tag": "a", "explanation": "…"}]}])
    assert policy_at(policy.parent) == str(policy) and speaks_as(policy) == str(run / "sft/model")
    collect(recipe, recipe.collect, tmp_path / "out")
    (item,) = load_items(tmp_path / "out/items.jsonl")
    assert item.tags == ("a",) and {one.weights for one in item.replies} == {weights_version(policy)}


def test_weights_are_known_wherever_they_lie(run, tmp_path):
    shutil.copytree(run / "sft/model", tmp_path / "copy")
    assert weights_version(tmp_path / "copy") == weights_version(run / "sft/model")
    versions = {weights_version(run / name) for name in ("sft/model", "ppo/model", "adapter")}
    assert len(versions) == 3
