"""What `align check` says of how a model will speak, before any is loaded and without torch."""

import subprocess
import sys

import pytest

from align import cli
from align.recipe.load import load_recipe
from align.stages.speech import speech
from tests.families import FAMILIES, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("families")
    for name in ("Llama 3", "Gemma 2", "GPT-NeoX", "Qwen 2.5"):
        save(FAMILIES[name], made / name)
    return made


def recipe(folder, name, *tokenizer):
    sft = "{data: [{path: x.jsonl}], learning_rate: 1e-3, max_length: 64, batch_size: 1, micro_batch_size: 1}"
    text = f"name: x\noutput_dir: {folder}/out\nmodel: {{path: '{folder / name}'}}\nsft: {sft}\n"
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", [f"model.tokenizer.{key}" for key in tokenizer])


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("Qwen 2.5", [], None),
        ("Llama 3", ["template=own"], "a reply ends with <|eot_id|>, and <|end_of_text|> stop one too"),
        ("Gemma 2", ["template=own"], "system turns are refused"),
        ("Gemma 2", ["add_chatml=true"], "are added, and the model gets embeddings for them, which an adapter trains"),
        ("GPT-NeoX", ["template=none"], "its completion ends with <|endoftext|>"),
    ],
)
def test_what_a_run_would_do(folder, name, keys, said):
    found = speech(recipe(folder, name, *keys))
    assert (found == []) if said is None else (len(found) == 1 and said in found[0])


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("Llama 3", [], "set model.tokenizer.template=own to keep the model's own chat template, or"),
        (
            "GPT-NeoX",
            ["template=own"],
            "has no chat template of its own; set model.tokenizer.template to chatml or none",
        ),
        ("GPT-NeoX", ["template=none", "end_token=</s>"], "has no token </s>; name one of its own"),
    ],
)
def test_a_model_that_cannot_is_refused_by_the_command(folder, name, keys, said, capsys):
    assert cli.main(check(folder, name, keys)) == 1
    assert said in capsys.readouterr().err


def check(folder, name, keys):
    """The words of the command."""
    recipe(folder, name)
    (folder / "x.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    overrides = [f"model.tokenizer.{key}" for key in keys]
    return ["check", str(folder / "recipe.yaml"), f"data_root={folder}", *overrides]


@pytest.mark.slow
def test_it_is_refused_where_there_is_no_torch(folder):
    code = "import sys; sys.modules['torch'] = None; from align.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, *check(folder, "Llama 3", [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "set model.tokenizer.template=own" in done.stderr, done.stderr
