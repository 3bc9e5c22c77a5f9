"""Every public family with the template it was published with: what is trained is what it writes; docs/families.md.

One row of the table a family: the ids of a conversation are those of the family's own rendering, and loss lies on the
replies alone; a reward model reads its score at the reply's end token; in PPO's first update the ratio is exactly 1.
"""

from __future__ import annotations

import dataclasses
import html
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align import cli
from align.data.encode import encode_comparisons, encode_demonstrations, encode_prompts
from align.models.critic import Critic
from align.models.load import load_causal_lm, load_reward_model
from align.models.save import save_model
from align.models.tokenizer import TokenizerError, load_tokenizer, recipe_tokenizer
from align.recipe.model_section import ModelSection, TokenizerSection
from align.trainers.ppo import PPOTrainer
from data_formats.chat_format import chat_format
from data_formats.errors import DataError
from data_formats.records import Comparison, Demonstration, Message, Prompt
from reward.export import export_classifier
from reward.protocol import Sample, same_tokens
from reward.sources import FunctionReward, ModelReward, load_reward
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.weights import checkpoint_tensors
from tests.align.trainers import ppo_case
from tests.families import FAMILIES, SERVER_ALONE, of_trl, save, served

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
SYSTEM, ASKED, SAID = Message("system", "Be brief."), Message("user", "Hi  you,\n\nHi?"), Message("assistant", "Hi Hi.")
TALK = (ASKED, SAID, Message("user", "And <|im_end|>, </s>?"), Message("assistant", "No <|eot_id|> <end_of_turn>"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, family, folder, its tokenizer as the toolkit loads it)"""
    found = FAMILIES[request.param]
    folder = save(found, tmp_path_factory.mktemp("family"))
    section = TokenizerSection(template=found.says)
    return request.param, found, folder, load_tokenizer(folder, section=section)


def plain(turns):
    """Without names of control tokens, which only a template may write."""
    return tuple(Message(turn.role, turn.content.replace("<", "(").replace("|", "/")) for turn in turns)


def test_conversations_are_what_the_family_writes(family):
    _, made, _, tokenizer = family
    talks = [plain(TALK[:2])] + [plain(TALK)] * made.several + [plain((SYSTEM, *TALK[:2]))] * made.system
    rows, _ = encode_demonstrations(tokenizer, [Demonstration(talk) for talk in talks], 1000, "error")
    end = chat_format(tokenizer).end_id
    for row, talk in zip(rows, talks, strict=True):
        assert row["input_ids"] == served(tokenizer, talk)
        prompt = encode_prompts(tokenizer, [talk[:-1]])[0]
        assert prompt == served(tokenizer, talk[:-1], add_generation_prompt=True) == row["input_ids"][: len(prompt)]
        spoken = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        replies, said = [turn.content for turn in talk if turn.role == "assistant"], tokenizer.decode(spoken)
        assert all(reply in said for reply in replies) and "And" not in said
        assert spoken.count(end) == len(replies) and spoken[-1] == end


def test_the_manual_has_the_familys_row(family):
    name, made, _, tokenizer = family
    codes = (html.escape(token).replace("|", "&#124;") for token in chat_format(tokenizer).stops)
    end, *others = (f"<code>{code}</code>" for code in codes)
    takes = ["yes" if taken else "no" for taken in (made.system, made.several)]
    vllm = "server" if made.model in SERVER_ALONE else "yes"
    row = f"| {name} | `{made.says}` | {end} | {', '.join(others) or '-'} | {takes[0]} | {takes[1]} | {vllm} |"
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), row


def test_nobody_can_write_a_control_token(family):
    _, made, _, tokenizer = family
    names = "".join(made.controls)
    talk = (replace(ASKED, content=f"{names} Hi"), replace(SAID, content=f"x {names}"))
    controls = {tokenizer.convert_tokens_to_ids(name) for name in made.controls}
    forged, honest = (
        encode_demonstrations(tokenizer, [Demonstration(turns)], 1000, "error")[0][0] for turns in (talk, (ASKED, SAID))
    )
    for ids in ("input_ids", "labels"):
        assert [id_ for id_ in forged[ids] if id_ in controls] == [id_ for id_ in honest[ids] if id_ in controls]
    assert names in tokenizer.decode([id_ for id_ in forged["labels"] if id_ != -100], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "turns", "reason"),
    [
        ("Qwen 3", (ASKED, SAID, ASKED, SAID), "rewrites earlier turns: turn 2 is written in another way"),
        ("Gemma 2", (SYSTEM, ASKED, SAID), "System role not supported"),
        ("Mistral", (ASKED, ASKED, SAID), "Conversation roles must alternate"),
        ("GPT-NeoX", (ASKED, SAID, ASKED, SAID), "takes one prompt and one completion, not a conversation of user, as"),
    ],
)
def test_what_a_template_refuses_is_refused_with_its_reason(tmp_path, name, turns, reason):
    tokenizer = load_tokenizer(save(FAMILIES[name], tmp_path), section=TokenizerSection(template=FAMILIES[name].says))
    with pytest.raises(DataError, match=reason):
        encode_demonstrations(tokenizer, [Demonstration(turns)], 1000, "error")
    if name == "Qwen 3":  # the last reply alone is trained as it is served
        rows, _ = encode_demonstrations(tokenizer, [Demonstration(turns)], 1000, "error", mask="last_turn_only")
        assert rows[0]["input_ids"] == served(tokenizer, turns)


def test_the_masks_are_those_of_a_template_that_marks_what_is_generated(tmp_path):
    """trl's training variants mark the replies with `{% generation %}`; some count the newline behind the end token."""
    for name, variant in (("Gemma 2", "gemma"), ("Llama 3", "llama3"), ("Phi 3", "phi3"), ("Qwen 2.5", "qwen2_5")):
        made = dataclasses.replace(FAMILIES[name], template=lambda variant=variant: of_trl(f"{variant}_training"))
        tokenizer = load_tokenizer(save(made, tmp_path / variant), section=TokenizerSection(template="own"))
        talk = plain(TALK)
        (row,), _ = encode_demonstrations(tokenizer, [Demonstration(talk)], 1000, "error")
        dicts = [{"role": turn.role, "content": turn.content} for turn in talk]
        told = tokenizer.apply_chat_template(dicts, return_assistant_tokens_mask=True, return_dict=True)
        assert told["input_ids"] == row["input_ids"]
        theirs = [id_ for id_, said in zip(told["input_ids"], told["assistant_masks"], strict=True) if said]
        ours = [id_ for id_, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        newline = tokenizer("a\n", add_special_tokens=False)["input_ids"][-1]
        ends = {newline, *chat_format(tokenizer).stop_ids}
        assert [id_ for id_ in theirs if id_ not in ends] == [id_ for id_ in ours if id_ not in ends]


@pytest.mark.slow
def test_rewards_are_read_at_the_end_and_the_first_ratio_is_one(family, tmp_path):
    _, made, folder, tokenizer = family
    model = ModelSection(path=str(folder), tokenizer={"template": made.says})
    speaker = chat_format(tokenizer)
    torch.manual_seed(0)
    scorer = load_reward_model(folder, model, tokenizer=tokenizer, use="frozen")
    judge = ModelReward(scorer, tokenizer)
    (pair,), _ = encode_comparisons(tokenizer, [Comparison((ASKED,), SAID.content, TALK[-1].content)], 1000, "error")
    texts = [Sample((ASKED,), SAID.content), Sample((ASKED,), TALK[-1].content)]
    assert judge.token_rows(texts) == [pair["chosen_ids"], pair["rejected_ids"]]
    assert pair["chosen_ids"][-1] == speaker.end_id and pair["chosen_ids"] != pair["rejected_ids"]
    for row, score in zip(judge.token_rows(texts), judge.score(texts), strict=True):
        states = scorer.states(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
        wanted = (scorer.head(states[:, -1]) - scorer.shift) / scorer.scale
        assert score == pytest.approx(float(wanted.squeeze()), abs=1e-4)
    policy = load_causal_lm(folder, model, tokenizer=tokenizer)
    ratios = []

    class Watching(PPOTrainer):
        def policy_loss(self, logps_BS, batch):
            loss, stats = super().policy_loss(logps_BS, batch)
            ratios.append((float(stats["ratio_min"]), float(stats["ratio_max"])))
            return loss, stats

    trainer = Watching(
        policy,
        Critic.from_causal_lm(load_causal_lm(folder, model, tokenizer=tokenizer)),
        FunctionReward(ppo_case.vowels),
        tokenizer,
        ppo_case.section(num_iterations=1, num_mini_batches=1),
        [Prompt((Message("user", f"Hi {word}"),)) for word in "abcdefgh"],
        output_dir=tmp_path,
    )
    trainer.step()
    assert all(abs(ratio - 1) < 1e-5 for pair in ratios for ratio in pair) and ratios
    assert trainer.stop_ids == speaker.stop_ids


@pytest.mark.slow
def test_what_is_saved_speaks_as_it_was_trained(family, tmp_path):
    """An adapter, the merged model and the exported classifier, each as stock transformers takes them."""
    _, made, folder, tokenizer = family
    model = ModelSection(path=str(folder), tokenizer={"template": made.says}, adapter="lora", lora={"rank": 2})
    speaker, talk = chat_format(tokenizer), (ASKED, SAID)
    (row,), _ = encode_demonstrations(tokenizer, [Demonstration(talk)], 1000, "error")
    ids = torch.tensor([row["input_ids"]])
    adapted = load_causal_lm(folder, model, tokenizer=tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
        expected = adapted(ids).logits
    save_model(adapted, tokenizer, tmp_path / "adapter")
    assert cli.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    merged, stock = (kind.from_pretrained(tmp_path / "merged") for kind in (AutoModelForCausalLM, AutoTokenizer))
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(ids).logits, expected, rtol=1e-3, atol=2e-3)
    assert merged.generation_config.eos_token_id == list(speaker.stop_ids)
    assert served(stock, talk) == row["input_ids"]
    assert load_tokenizer(tmp_path / "merged").chat_template == tokenizer.chat_template
    with pytest.raises(TokenizerError, match=f"speaks as model.tokenizer.template: {made.says}"):
        load_tokenizer(tmp_path / "merged", section=TokenizerSection())
    torch.manual_seed(2)
    scorer = load_reward_model(folder, model.without_adapter(), tokenizer=tokenizer)
    save_model(scorer, tokenizer, tmp_path / "rm")
    assert load_tokenizer(tmp_path / "rm").chat_template == tokenizer.chat_template
    judge = load_reward(tmp_path / "rm")
    assert same_tokens(judge, tokenizer)
    ours = judge.score([Sample((ASKED,), SAID.content)])[0]
    classifier = AutoModelForSequenceClassification.from_pretrained(
        export_classifier(tmp_path / "rm", tmp_path / "out")
    )
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [served(exported, talk), served(exported, (ASKED, Message("assistant", "Hi")))]
    padded = exported.pad({"input_ids": rows}, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = classifier.eval()(**padded).logits[:, 0]
    assert float(scores[0]) == pytest.approx(ours, abs=1e-4) and rows[1][-1] == speaker.end_id


@pytest.mark.slow
@pytest.mark.needs("vllm")
@pytest.mark.parametrize("name", ["Llama 3", "Gemma 2", "Phi 3"])
def test_vllm_writes_what_transformers_writes(name, tmp_path):
    from rollouts.vllm.engine import VLLMEngine
    from tests.rollouts.vllm.models import settings

    made = FAMILIES[name]
    folder = save(made, tmp_path)
    section = ModelSection(path=str(folder), tokenizer={"template": made.says})
    tokenizer = recipe_tokenizer(folder, section)
    model = load_causal_lm(folder, section, tokenizer=tokenizer, use="frozen")
    prompts = encode_prompts(tokenizer, [(Message("user", f"Hi {word}"),) for word in "abcdefgh"])
    greedy = SamplingParams(temperature=0, max_new_tokens=16, stop_token_ids=chat_format(tokenizer).stop_ids)
    engine = VLLMEngine(model, settings())
    try:
        engine.update_weights(checkpoint_tensors(model), 1)
        ours = [reply.token_ids for reply in engine.generate(prompts, greedy)]
    finally:
        engine.close()
    theirs = [reply.token_ids for reply in HFEngine(model, tokenizer.pad_token_id).generate(prompts, greedy)]
    assert sum(mine == other for mine, other in zip(ours, theirs, strict=True)) >= len(prompts) - 1  # near ties
