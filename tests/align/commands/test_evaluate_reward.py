import json
import math

import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from align import cli
from align.recipe.lineage import Origin
from align.stages.chain import run_stage
from align.stages.run_reward import train_reward
from data_formats import Comparison, Message, write_jsonl
from reward.model import RewardModel
from reward.protocol import Sample
from reward.sources import ModelReward, load_reward
from tests.align.stages.small_chain import small_recipe, write_data
from tests.tiny_models import bert_tokenizer, byte_tokenizer, save_causal_lm

PAIRS = [
    Comparison((Message("user", f"q{at} 好"),), "a" * (1 + at % 5), "b" * 3, grade=float(at % 3), tags=("[red]",))
    for at in range(12)
]


def save_reward(folder, seed=0, **changes):
    torch.manual_seed(seed)
    model = RewardModel.from_backbone(save_causal_lm(folder / "base", **changes))
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(folder / "rm")
    byte_tokenizer().save_pretrained(folder / "rm")
    return folder / "rm"


@pytest.fixture
def data(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    return str(tmp_path / "pairs.jsonl")


@pytest.fixture
def asked(capsys, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def ask(*words, code=0):
        capsys.readouterr()  # what saving prints
        assert cli.main(["evaluate-reward", *map(str, words)]) == code
        return capsys.readouterr()

    return ask


def summary_of(shown):
    return json.loads(shown.out)


def error_of(shown):
    (line,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in shown.err and shown.out == ""
    return line


@pytest.mark.slow
def test_a_stages_model_on_its_own_held_out_pairs_gets_the_stages_figures(tmp_path, asked):
    write_data(tmp_path)
    recipe = small_recipe(tmp_path, rm__max_length=120)
    run_stage(recipe, "base")
    rm = tmp_path / "run" / "rm"
    stage = train_reward(recipe, recipe.rm, Origin("stage", "base"), rm, seed=5)
    out = tmp_path / "out"
    found = summary_of(asked(rm / "model", rm / "eval.jsonl", "--json", "--out", out))
    assert found == json.loads((out / "summary.json").read_text())
    for key in ("accuracy", "pairs", "by_category", "by_tag", "by_length_gap"):
        assert found[key] == stage[key]  # the rule of length is the same: the longer reply wins in all of these files
    for key in ("margin", "calibration_error", "temperature", "calibration_error_at_temperature"):
        assert found[key] == pytest.approx(stage[key], rel=1e-4)
    rows, other = ([json.loads(line) for line in (at / "eval.jsonl").read_text().splitlines()] for at in (out, rm))
    assert [row["chosen_score"] for row in rows] == pytest.approx([row["chosen_score"] for row in other], abs=1e-5)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in other]
    assert (out / "most_wrong.jsonl").read_text() == "" or found["accuracy"] < 1


def test_scores_are_those_of_the_model_alone_and_the_table_says_it(tmp_path, data, asked):
    folder = save_reward(tmp_path)
    shown = asked(folder, data, "--batch-size", 5).out
    scores = load_reward(folder).score(
        [Sample(one.prompt, text) for one in PAIRS for text in (one.chosen, one.rejected)]
    )
    right = sum(a > b for a, b in zip(scores[0::2], scores[1::2], strict=True))
    assert f"{100 * right / 12:.1f} %" in next(line for line in shown.splitlines() if "all pairs" in line)
    assert "[red]" in shown and "expected calibration error" in shown
    # lengths 1 to 5 in turns against 3: of 12 pairs 4 are longer, 2 equal
    assert '"longer wins" is right on 41.7 %, "shorter wins" on 58.3 %; the table takes shorter' in shown
    assert max(map(len, shown.splitlines()[3:10])) <= 80


def test_an_adapter_of_ours(tmp_path, data, asked):
    model = RewardModel.from_backbone(save_causal_lm(tmp_path / "base"))
    torch.nn.init.normal_(model.head.weight)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = RewardModel(peft.get_peft_model(model.backbone, config), model.head).eval()
    model.save_pretrained(tmp_path / "rm")
    byte_tokenizer().save_pretrained(tmp_path / "rm")
    asked(tmp_path / "rm", data, "--out", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    expected = ModelReward(model, byte_tokenizer()).score([Sample(one.prompt, one.chosen) for one in PAIRS])
    assert [row["chosen_score"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_a_foreign_classifier_reads_the_text_its_own_way(tmp_path, asked):
    torch.manual_seed(0)
    tokenizer = bert_tokenizer("what is two and three five the answer")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=16, **shape)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    write_jsonl(tmp_path / "p.jsonl", [Comparison((Message("user", "what is two and three"),), "the answer", "five")])
    found = summary_of(asked(tmp_path / "bert", tmp_path / "p.jsonl", "--json"))
    with torch.no_grad():
        sides = [
            model(**tokenizer("what is two and three", reply, return_tensors="pt")).logits.item()
            for reply in ("the answer", "five")
        ]
    assert found["margin"] == pytest.approx(sides[0] - sides[1], abs=1e-6)
    assert found["calibration_error_at_temperature"] is None and list(found["by_source"]) == [str(tmp_path / "p.jsonl")]


def test_what_is_no_reward_model_is_one_sentence(tmp_path, data, asked):
    language_model = save_causal_lm(tmp_path / "lm")
    assert "another kind of model" in error_of(asked(language_model, data, code=1))
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in error_of(asked(tmp_path / "empty", data, code=1))
    assert "/no/such" in error_of(asked("/no/such", data, code=1))


def test_what_is_no_data_is_one_sentence(tmp_path, asked):
    folder = save_reward(tmp_path)
    (tmp_path / "none.jsonl").write_text("")
    assert "none.jsonl: the file holds no rows" in error_of(asked(folder, tmp_path / "none.jsonl", code=1))
    (tmp_path / "none.jsonl").write_text('{"text": "a document"}\n')
    assert "none.jsonl" in error_of(asked(folder, tmp_path / "none.jsonl", code=1))
    (tmp_path / "folder").mkdir()
    assert "no comparison is left in" in error_of(asked(folder, tmp_path / "folder", code=1))
    assert "no such file or folder" in error_of(asked(folder, tmp_path / "typo.jsonl", code=1))


def test_scores_that_are_no_numbers_name_model_and_pairs(tmp_path, data, asked):
    folder = save_reward(tmp_path)
    model = RewardModel.from_pretrained(folder)
    with torch.no_grad():
        model.backbone.norm.weight.fill_(math.nan)
    model.save_pretrained(folder)
    shown = error_of(asked(folder, data, "--out", tmp_path / "out", code=1))
    assert str(folder) in shown and "nan" in shown and "among the pairs 1 to 12" in shown
    assert not (tmp_path / "out").exists()


def test_a_stages_folder_is_not_written_over(tmp_path, data, asked):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "recipe.yaml").write_text("")
    assert "a stage's own figures" in error_of(asked("any", data, "--out", tmp_path / "rm", code=1))
    assert "is a file" in error_of(asked("any", data, "--out", data, code=1))


@pytest.mark.parametrize("words", [["model"], ["m", "d", "--batch-size", "0"], ["m", "d", "--dtype", "int8"]])
def test_bad_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate-reward", *words])
    assert stop.value.code == 2 and "usage: align evaluate-reward" in capsys.readouterr().err
