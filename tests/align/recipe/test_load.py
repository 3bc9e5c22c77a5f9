"""Loading: overrides, strict types, every error at once with its path, and the resolved recipe's round trip."""

import pytest
from ruamel.yaml import YAML

from align.recipe import RecipeError, dump_recipe, load_recipe
from align.recipe.load import inspect
from data_formats.errors import AlignError, MissingFileError

MINIMAL = """\
name: t
output_dir: out
model: {path: org/model, mixed_precision: no}
sft:
  data: [{path: a.jsonl}]
  learning_rate: 2e-6
  max_length: 128
  batch_size: 8
  micro_batch_size: 4
"""
PPO = """\
ppo:
  data: [p.jsonl]
  num_iterations: 30
  rollout_batch_size: 8
  num_mini_batches: 2
"""


@pytest.fixture
def write(tmp_path):
    def _write(text=MINIMAL, name="r.yaml"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return _write


def problems(file, *overrides, world_size=1):
    return list(inspect(file, overrides, world_size=world_size).problems)


def test_values_and_defaults(write):
    recipe = load_recipe(write(MINIMAL + PPO))
    assert recipe.model.mixed_precision == "no"
    assert recipe.sft.learning_rate == 2e-6
    assert recipe.stages == ("sft", "ppo")
    assert recipe.ppo.data[0].path == "p.jsonl"
    # the report's values are the defaults
    assert (recipe.ppo.kl_coef, recipe.ppo.cliprange_value, recipe.ppo.critic_warmup_steps) == (0.04, 0.15, 50)
    assert (recipe.ppo.rollout.num_generations, recipe.ppo.rollout.top_p) == (2, 0.9)
    assert (recipe.ppo.policy.learning_rate, recipe.ppo.critic.learning_rate) == (1e-6, 5e-6)


def test_recipe_is_frozen(write):
    recipe = load_recipe(write())
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_overrides_are_yaml_typed_and_the_last_wins(write):
    recipe = load_recipe(
        write(MINIMAL + PPO),
        ["ppo.kl_coef=1e-1", "seed=1", "seed=7", "sft.data=[x.jsonl, {path: y.jsonl, limit: 3}]", "sft.data.1.limit=5",
         "ppo.rollout.top_p=1", "data_root=/some where", "ppo.cliprange_value=null"],
    )  # fmt: skip
    assert (recipe.seed, recipe.ppo.kl_coef, recipe.ppo.rollout.top_p) == (7, 0.1, 1.0)
    assert [(source.path, source.limit) for source in recipe.sft.data] == [("x.jsonl", None), ("y.jsonl", 5)]
    assert recipe.data_root == "/some where"
    assert recipe.ppo.cliprange_value is None


def test_an_override_can_drop_or_add_a_section(write):
    assert load_recipe(write(MINIMAL + PPO), ["ppo=null"]).stages == ("sft",)
    sizes = (
        "{documents: 1, demonstrations: 1, coarse_comparisons: 1, comparisons: 1, heldout_comparisons: 1, prompts: 1}"
    )
    assert load_recipe(write(), [f"tinyworld={sizes}"]).tinyworld.eval_prompts == 300


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "'seed' is not an override"),
        ("=3", "'=3' is not an override"),
        ("a..b=3", "'a..b=3' is not an override"),
        ("seed=[1", "seed: the value '[1' is not YAML"),
        ("seed.x=1", "seed.x: 'seed' is a plain value and has no keys"),
        ("sft.data.1.limit=3", "sft.data.1.limit: 'sft.data' is a list of 1; write an element's number, 0 to 0"),
        ("sft.data.first.limit=3", "sft.data.first.limit: 'sft.data' is a list of 1"),
    ],
)
def test_bad_overrides(write, override, sentence):
    found = problems(write(MINIMAL.replace("name: t", "name: t\nseed: 1")), override)
    assert len(found) == 1 and found[0].startswith(sentence)


def test_every_field_error_at_once_with_its_path_and_line(write):
    text = """\
name: t
outputdir: out
model: {path: org/model, dtype: flaot32}
sft:
  data: [{path: a.jsonl, limt: 3}]
  learning_rat: 2e-6
  max_length: "128"
  batch_size: 10
  micro_batch_size: 4
rm:
  data: [c.jsonl]
  learning_rate: 1e-5
  max_length: 1
  batch_size: 8
  micro_batch_size: true
  warmup_steps: 5
ppo:
  data: []
  num_iterations: 3.5
  rollout_batch_size: 8
  num_mini_batchs: 3
  ptx_coef: 0.1
  rollout: {top_p: 1.5, kl_coef: 3}
"""
    assert set(problems(write(text))) == {
        "outputdir: unknown key; did you mean 'output_dir'? (line 2)",
        "model.dtype: must be 'float32', 'bfloat16' or 'float16', not 'flaot32' (text); "
        "did you mean 'float32'? (line 3)",
        "sft.data.0.limt: unknown key; did you mean 'limit'? (line 5)",
        "sft.learning_rat: unknown key; did you mean 'learning_rate'? (line 6)",
        "sft.max_length: must be an integer, not '128' (text) (line 7)",
        "ppo.data: must not be empty (line 18)",
        "rm.micro_batch_size: must be an integer, not true (line 15)",
        "ppo.num_iterations: must be an integer, not 3.5 (line 19)",
        "ppo.num_mini_batchs: unknown key; did you mean 'num_mini_batches'? (line 21)",
        "ppo.rollout.top_p: must be at most 1.0, not 1.5 (line 23)",
        "ppo.rollout.kl_coef: unknown key in the section 'ppo.rollout'; it belongs at ppo.kl_coef (line 23)",
    }


def test_every_broken_rule_at_once_with_its_path_and_line(write):
    text = """\
name: t
output_dir: out
model: {path: org/model}
sft:
  data: [{path: a.jsonl, weight: 3}, {path: b.jsonl, split: lines, hub: org/name}, c.jsonl]
  learning_rate: 2e-6
  max_length: 128
  batch_size: 10
  micro_batch_size: 4
rm:
  data: [b.jsonl]
  learning_rate: 1e-5
  max_length: 1
  batch_size: 8
  micro_batch_size: 8
  warmup_steps: 5
  lr_scheduler_type: constant
ppo:
  data: [p.jsonl]
  num_iterations: 30
  rollout_batch_size: 8
  num_mini_batches: 3
  ptx_coef: 0.1
"""
    assert problems(write(text)) == [
        "sft.data.1.weight: either all sources of a list have a weight or none has; give this one a weight too",
        "sft.data.2.weight: either all sources of a list have a weight or none has; give this one a weight too",
        "sft.data.1.hub: a source is either a file ('path') or a dataset of the hub; remove one of them (line 5)",
        "rm.lr_scheduler_type: 'constant' ignores warmup_steps; "
        "use lr_scheduler_type=constant_with_warmup or warmup_steps=0 (line 17)",
        "ppo.ptx_data: is empty although ptx_coef is above 0: name pretraining documents, or set ptx_coef to 0",
        "sft.batch_size: 10 rows cannot be cut into 1 rank x micro_batch_size 4 x a whole accumulation "
        "(10 / 1 = 10 rows a rank); try sft.micro_batch_size=2 or sft.batch_size=8",
        "ppo.num_mini_batches: 8 prompts x 2 generations = 16 responses cannot be cut into 3 equal minibatches; "
        "try ppo.num_mini_batches=2",
    ]


def test_keys_of_former_versions_say_what_became_of_them(write):
    text = "ppo:\n  data: [p.jsonl]\n  num_iterations: 100\n  missing_eos: none\n  old_logprobs: recompute\n"
    eos, old = sorted(problem for problem in problems(write(text)) if "unknown key" in problem)
    assert eos.startswith(
        "ppo.missing_eos: unknown key: it is gone, missing_eos_penalty is always subtracted: leave it"
    )
    assert eos.endswith("(line 4)") and old == (
        "ppo.old_logprobs: unknown key: it is gone, a pass that is not needed is found by itself: leave it out (line 5)"
    )


def test_a_gone_key_of_a_stage_in_two_sections_is_told_for_each(write):
    rows = "{data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 8, micro_batch_size: 8"
    rows += ", source_weights: {}}"
    found = problems(write(f"{MINIMAL}pmp: {rows}\nrm: {rows}\n"))
    assert [problem.partition(": it is gone")[0] for problem in found] == [
        "pmp.source_weights: unknown key",
        "rm.source_weights: unknown key",
    ]


def test_a_bad_value_does_not_make_findings_that_rest_on_its_default(write):
    # With the default micro_batch_size of 8 the split would be impossible: only the true error may be told.
    assert problems(write(MINIMAL + PPO), "ppo.micro_batch_size=x", "ppo.rollout_batch_size=2") == [
        "ppo.micro_batch_size: must be an integer, not 'x' (text)"
    ]
    assert problems(write(MINIMAL + PPO), "ppo.ptx_coef=0.1", "ppo.ptx_data=3") == [
        "ppo.ptx_data: must be a list, not 3"
    ]


def test_an_override_has_no_line(write):
    assert problems(write(), "sft.batch_size=0") == ["sft.batch_size: must be above 0, not 0"]


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_numbers_must_be_finite(write, value):
    assert problems(write(), f"sft.learning_rate={value}")[0].startswith("sft.learning_rate: ")


def test_missing_required_sections(write):
    found = problems(write("name: t\n"))
    assert found == ["output_dir: is required but missing", "model: is required but missing"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n", "must be a YAML mapping"),
        ("just text\n", "must be a YAML mapping"),
        ("a: [1\n", "line 2"),
        ("a: 1\na: 2\n", "occurs twice"),
    ],
)
def test_a_file_that_is_no_recipe(write, text, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(write(text))


def test_not_utf8(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "r.yaml")


def test_no_such_file_suggests_a_shipped_one():
    with pytest.raises(MissingFileError, match="did you mean 'quickstart'"):
        load_recipe("quikstart")


def test_errors_are_align_errors_and_builtins(write):
    with pytest.raises(RecipeError, match="has 2 errors") as caught:
        load_recipe(write(), ["x=1", "y=1"])
    assert isinstance(caught.value, AlignError) and isinstance(caught.value, ValueError)
    assert len(caught.value.problems) == 2


def test_rules_between_sections(write):
    text = MINIMAL.replace("{path: org/model, mixed_precision: no}", "{architecture: {max_position_embeddings: 64}}")
    assert problems(write(text)) == [
        "base: is missing: model.architecture makes a new model, which needs a 'base' stage to train it",
        "sft.max_length: 128 is more than max_position_embeddings (64) (line 7)",
    ]
    both = MINIMAL.replace("mixed_precision: no", "architecture: {hidden_size: 100, num_key_value_heads: 3}")
    assert set(problems(write(both))) == {
        "base: is missing: model.architecture makes a new model, which needs a 'base' stage to train it",
        "model: needs exactly one of 'path' (a folder or hub id) and 'architecture' (a new tiny model) (line 3)",
        "model.architecture.hidden_size: 100 must be an even multiple of num_attention_heads (4), "
        "for rotary positions (line 3)",
        "model.architecture.num_attention_heads: 4 must be a multiple of num_key_value_heads (3)",
    }


def test_rules_hold_when_a_recipe_is_built_in_python(write):
    recipe = load_recipe(write(MINIMAL + PPO))
    with pytest.raises(ValueError, match="ptx_data: is empty"):
        type(recipe.ppo).model_validate(recipe.ppo.model_dump() | {"ptx_coef": 0.5})


def test_world_size_comes_from_the_launch(write, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="8 rows cannot be cut into 3 ranks x micro_batch_size 4"):
        load_recipe(write())
    assert load_recipe(write(), world_size=2).sft.batch_size == 8


def test_dumped_recipe_loads_equal(write):
    recipe = load_recipe(write(MINIMAL + PPO), ["name='no'", "sft.data.0.category=世界", "ppo.rollout.top_p=1e-1"])
    again = load_recipe(write(dump_recipe(recipe), "again.yaml"))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)
    # A reader of YAML 1.1 must not see other values either.
    older = YAML(typ="safe", pure=True)
    older.version = (1, 1)
    assert older.load("a: no")["a"] is False and older.load(dump_recipe(recipe))["name"] == "no"


def test_a_dumped_recipe_has_no_secrets(write, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in dump_recipe(load_recipe(write()))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("a." * 70 + "a=1", "nested deeper than 64 levels"),
        ("a." * 100_000 + "a=1", "nested deeper than 64 levels"),
        ("sft.data.²=1", "'sft.data' is a list of 1"),
        ("sft.data." + "9" * 5000 + "=1", "'sft.data' is a list of 1"),
        ("x" * 5000, "is not an override"),
        ("x" * 5000 + "=1", "unknown key"),
        ("sft.learning_rate=" + "x" * 5000, "sft.learning_rate: must be a number, not 'xxx"),
        ("sft.optimizer=" + "x" * 5000, "sft.optimizer: must be "),
        ("seed=" + "9" * 5000, "an integer of 5000 characters is larger"),
        ("seed=!!timestamp x", "x is no timestamp"),
    ],
)
def test_hostile_overrides_are_one_short_sentence(write, override, sentence):
    (problem,) = problems(write(), override)
    assert sentence in problem and len(problem) < 600
