"""The embedded world by the commands a user types: replies collected, compared in a browser, merged, learned from by a
reward model, and that one followed by PPO."""

import json
import re
from dataclasses import replace
from itertools import combinations, cycle

import pytest

from align import cli
from align.feedback.items import load_items
from align.feedback.provenance import provenance_of
from align.stages import preferences
from data_formats import read
from data_formats.records import Comparison
from tests.align.feedback.annotation_case import Opened, Program

pytestmark = [pytest.mark.slow, pytest.mark.needs("playwright")]
RECIPE = """\
name: loop
output_dir: {run}
seed: 5
model:
  architecture: {{vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
    num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 128}}
tinyworld: {{documents: 300, demonstrations: 300, coarse_comparisons: 8, comparisons: 8, heldout_comparisons: 8,
  prompts: 24, eval_prompts: 8}}
base: {{data: [tinyworld:documents], max_length: 64, batch_size: 16, micro_batch_size: 16, max_steps: 40,
  learning_rate: 1e-2}}
sft: {{data: [tinyworld:demonstrations], max_length: 128, batch_size: 16, micro_batch_size: 16, max_steps: 40,
  learning_rate: 1e-2, eval_num_replies: 4, max_completion_length: 24}}
collect: {{data: [tinyworld:prompts], sources: [{{model: sft}}, {{model: sft, temperature: 1.4}}], num_prompts: 8,
  num_replies: 3, max_completion_length: 24}}
rm: {{data: [{run}/pairs.jsonl], eval_data: [{run}/pairs.jsonl], margin: small, max_length: 128, batch_size: 8,
  micro_batch_size: 8, num_train_epochs: 20, learning_rate: 1e-2}}
ppo:
  data: [tinyworld:prompts]
  num_iterations: 2
  rollout_batch_size: 4
  num_mini_batches: 2
  critic_warmup_steps: 1
  policy: {{learning_rate: 1e-3}}
  critic: {{learning_rate: 1e-3}}
  rollout: {{max_prompt_length: 64, max_completion_length: 24}}
"""
GRADES = {"s": 4.0, "b": 3.0, "l": 2.0, "n": 1.0}
ANNA = "Anna"


def align(*words):
    assert cli.main(list(map(str, words))) == 0


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def visible(text):
    """As the page shows what has no sign of its own."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def judged_in_a_browser(browser, url):
    """The longest reply is the best, in turns by each strength, but for a tie and replies that are all bad; one is
    rewritten. Returns what that says: (prompt, better, worse, grade) of each two replies."""
    said = []
    with Opened(browser, url) as opened:
        opened.join(ANNA)
        _, total = map(int, opened.page.locator("#progress").inner_text().split(" of "))
        for at, strength in zip(range(total), cycle(GRADES)):
            prompt = opened.page.locator(".turn .text").text_content()
            shown = opened.page.locator(".reply .text").evaluate_all("all => all.map(one => one.textContent)")
            order = sorted(range(len(shown)), key=lambda one: -len(shown[one]))
            best, *worse = (shown[one] for one in order)
            if at in (1, 2):
                opened.press("t" if at == 1 else "x")
            else:
                opened.press(*(str(one + 1) for one in order[:-1]), strength)
                said += [(prompt, best, one, GRADES[strength]) for one in worse]
                said += [(prompt, *pair, None) for pair in combinations(worse, 2)]
            if at == 3:
                opened.press("e", "ControlOrMeta+A")
                opened.page.keyboard.type("Rewritten.")
                said += [(prompt, "Rewritten.", one, GRADES[strength]) for one in worse]
                said.append((prompt, "Rewritten.", best, None))
            opened.save(("Control+Enter",))
        opened.page.wait_for_selector("#end:not([hidden])")
        assert opened.wrong == []
    return said


def test_what_somebody_chose_in_a_browser_is_what_the_reward_model_learns_and_ppo_follows(
    browser, tmp_path, monkeypatch
):
    run, recipe = tmp_path / "run", tmp_path / "loop.yaml"
    recipe.write_text(RECIPE.format(run=run))
    align("run", recipe, "rm=null", "ppo=null")
    align("collect", recipe)
    items = {item.id: item for item in load_items(run / "collect/items.jsonl")}

    program = Program(run / "collect/items.jsonl", "--port", "0")
    try:
        said = judged_in_a_browser(browser, program.url)
        program.end()
    finally:
        program.process.kill()
    align("merge-judgments", run / "collect/items.jsonl", run / "collect/judgments.jsonl", "--out", run / "pairs.jsonl")

    learned = {}

    def encode_training(tokenizer, comparisons, section, seed):
        learned["rows"], learned["comparisons"], dropped = encoded = real(tokenizer, comparisons, section, seed)
        learned["tokenizer"] = tokenizer
        assert not dropped
        return encoded

    real = preferences.encode_training
    monkeypatch.setattr(preferences, "encode_training", encode_training)
    align("run", recipe)

    pairs = learned["comparisons"]
    assert [replace(pair, source="") for pair in pairs] == read(run / "pairs.jsonl", Comparison).records
    told = [(pair.prompt[-1].content, visible(pair.chosen), visible(pair.rejected), pair.grade) for pair in pairs]
    assert sorted(told, key=str) == sorted(said, key=str) and len({one[0] for one in told}) == len(items) - 2
    for pair in pairs:
        about = provenance_of(pair.provenance)
        texts = {reply.reply: reply for reply in items[about.item].replies}
        assert items[about.item].prompt == pair.prompt and about.annotators == (ANNA,) and not about.against
        for text, written in ((pair.chosen, about.chosen), (pair.rejected, about.rejected)):
            if text != "Rewritten.":
                assert (written.source, written.weights) == (texts[text].source, texts[text].weights)
        assert about.chosen.edited_by == ((ANNA,) if pair.chosen == "Rewritten." else ())
    margins = {4.0: 1, 3.0: 2 / 3, 2.0: 1 / 3, 1.0: 0, None: 0}  # of Llama 2, `small`
    for pair, row in zip(pairs, learned["rows"], strict=True):
        ((better, worse, margin, _),) = row["pairs"]
        texts = [
            learned["tokenizer"].decode(row["reply_ids"][one], skip_special_tokens=True) for one in (better, worse)
        ]
        assert texts == [pair.chosen, pair.rejected] and margin == pytest.approx(margins[pair.grade])

    summary = json.loads((run / "rm/summary.json").read_text())
    assert summary["rows"] == len(pairs) and summary["accuracy"] > 0.9  # it learned them by heart
    ppo = json.loads((run / "ppo/summary.json").read_text())
    assert ppo["steps"] == 2 and ppo["origins"]["reward"] == {"kind": "stage", "value": "rm"}
    align("score", run / "rm/model", run / "ppo/samples.jsonl", "--out", tmp_path / "scored.jsonl")
    followed = [
        (sample["score"], scored["score"])
        for sample, scored in zip(rows(run / "ppo/samples.jsonl"), rows(tmp_path / "scored.jsonl"), strict=True)
        if "\ufffd" not in sample["reply"]  # else its text is not all that was sampled
    ]
    assert len(followed) > 8
    assert [one for one, _ in followed] == pytest.approx([other for _, other in followed], abs=1e-4)
