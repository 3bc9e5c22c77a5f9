"""What stops a recipe from running, told before anything heavy is imported, and the plan."""

import pytest

from align.recipe import RecipeError, load_recipe
from align.recipe.check import check_recipe, describe_plan, missing_inputs, require_ready, run_problems
from align.recipe.sources import source_path
from align.runtime import packages
from data_formats.errors import MissingFileError

RECIPE = """\
name: t
output_dir: {out}
data_root: {root}
model: {{path: org/model}}
tinyworld: {{documents: 1, demonstrations: 1, coarse_comparisons: 1, comparisons: 1, heldout_comparisons: 1,
  prompts: 1}}
sft: &s {{data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}}
pmp: {{<<: *s, data: [tinyworld:coarse_comparisons]}}
rm: {{<<: *s, data: [tinyworld:comparisons]}}
ppo: {{data: [tinyworld:prompts], num_iterations: 2, rollout_batch_size: 4, num_mini_batches: 2, micro_batch_size: 4,
  critic_warmup_steps: 3}}
"""


@pytest.fixture
def recipe_file(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.jsonl").write_text("{}\n")
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(out=tmp_path / "out", root=root))
    return file


def failing(file, *overrides):
    with pytest.raises(RecipeError) as caught:
        check_recipe(file, overrides, world_size=1)
    return list(caught.value.problems)


def test_a_good_recipe_and_its_plan(recipe_file, tmp_path):
    plan = describe_plan(check_recipe(recipe_file, ["seed=5"], world_size=2), 2)
    lines = plan.splitlines()
    assert lines[0] == f"t: seed 5, output {tmp_path / 'out'}"
    stages = {line.split()[0]: line for line in lines if line}
    assert "policy sft, reward rm, critic rm" in plan
    assert stages["rm"].split()[1:] == ["4", "pairs", "2", "2", "4", "1"] or "pmp" in plan
    assert "ppo: 2 iterations of 4 prompts x 2 generations = 8 responses, 2 optimizer steps each" in plan
    assert "the policy waits for the first 3 of 4 steps" in plan


def test_what_wants_bitsandbytes_says_so_before_anything_is_loaded(recipe_file, monkeypatch):
    asked = ["model.adapter=qlora", "sft.optimizer=adamw_8bit", "ppo.critic.optimizer=lion_8bit"]
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    install = "needs bitsandbytes, which is not installed: pip install 'align-rlhf[bitsandbytes]'"
    told = [f"model.adapter: 'qlora' {install}", f"sft.optimizer: 'adamw_8bit' {install}"]
    told.append(f"ppo.critic.optimizer: 'lion_8bit' {install}")
    assert failing(recipe_file, *asked) == told
    with pytest.raises(RecipeError) as caught:
        require_ready(load_recipe(recipe_file, asked), "rm", "r.yaml")
    assert list(caught.value.problems) == told[:1]
    monkeypatch.setattr(packages, "find_spec", lambda name: name)
    assert check_recipe(recipe_file, asked, world_size=1)


def test_missing_files_beside_broken_rules(recipe_file, tmp_path):
    root = tmp_path / "data"
    found = failing(recipe_file, "sft.data=[a.jsnl, b.txt]", "rm.eval_data=[tinyworld:comparison]", "ppo.kl_target=1",
                    "ppo.kl_coef=0")  # fmt: skip
    assert found == [
        "ppo.kl_coef: 0 cannot be adapted, since kl_target multiplies it; start above 0",
        f"sft.data.0.path: no such file {root}/a.jsnl; did you mean 'a.jsonl'?",
        f"sft.data.1.path: no such file {root}/b.txt",
        "rm.eval_data.0.path: the embedded world has no set 'comparison'; did you mean 'tinyworld:comparisons'?",
    ]


def test_fields_are_told_before_what_rests_on_them(recipe_file):
    """A missing or misspelt field makes no finding about rules and files: these come once the fields are right."""
    assert failing(recipe_file, "sft={data: [{limit: 3}]}", "ppo.kl_coeff=1") == [
        "sft.learning_rate: is required but missing",
        "sft.max_length: is required but missing",
        "sft.batch_size: is required but missing",
        "sft.micro_batch_size: is required but missing",
        "ppo.kl_coeff: unknown key; did you mean 'kl_coef'?",
    ]
    assert failing(recipe_file, "sft.data=[{limit: 3}]") == [
        "sft.data.0: needs 'path' (a file) or 'hub' (a dataset's id, org/name)",
    ]


def test_data_root(recipe_file, tmp_path):
    assert failing(recipe_file, "data_root=/nowhere") == [
        "data_root: no such folder /nowhere; set data_root=<folder> to say where the files lie"
    ]
    assert failing(recipe_file, f"data_root={tmp_path}") == [
        f"data_root: the files lie one folder deeper; did you mean data_root={tmp_path}/data?"
    ]
    (no_root,) = failing(recipe_file, "data_root=null", "sft.data=[nowhere.jsonl]")
    assert no_root == "sft.data.0.path: no such file nowhere.jsonl; set data_root=<folder> to say where the files lie"
    check_recipe(recipe_file, ["data_root=null", f"sft.data=[{tmp_path}/data/a.jsonl]"])
    assert failing(recipe_file, "sft.data=[.]") == [f"sft.data.0.path: {tmp_path}/data is a folder, not a file"]


def test_source_paths(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    assert source_path(recipe, recipe.sft.data[0]) == tmp_path / "data/a.jsonl"
    assert source_path(recipe, recipe.rm.data[0]) == tmp_path / "out/world/comparisons.jsonl"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sft.init_from=rm", "sft.init_from: 'rm' does not run before 'sft'"),
        ("sft.init_from=sft", "sft.init_from: 'sft' does not run before 'sft'"),
        ("ppo.init_from=rm", "ppo.init_from: 'rm' is a reward model and cannot write"),
        ("ppo.reward_from=sft", "ppo.reward_from: 'sft' is no reward model"),
        ("rm.init_from=pnp", "rm.init_from: 'pnp' is neither a stage nor a folder; did you mean 'pmp'?"),
        ("rm.init_from=./nowhere", "rm.init_from: no such folder ./nowhere"),
        ("model.path=/nowhere/model", "model.path: no such folder /nowhere/model"),
        ("rm.init_from=base", "rm.init_from: stage 'base' is neither in this recipe nor finished in"),
        ("tinyworld=null", "pmp.data.0.path: 'tinyworld:coarse_comparisons' needs the section 'tinyworld'"),
        ("ppo.reward_from=rn", "ppo.reward_from: 'rn' is neither a stage nor a folder; did you mean 'rm'?"),
        ("ppo.reward_from=PMP", "ppo.reward_from: 'PMP' is neither a stage nor a folder; did you mean 'pmp'?"),
        ("ppo.critic_from=rmm", "ppo.critic_from: 'rmm' is neither a stage nor a folder; did you mean 'rm'?"),
        ("ppo.init_from=sftt", "ppo.init_from: 'sftt' is neither a stage nor a folder; did you mean 'sft'?"),
    ],
)
def test_impossible_origins(recipe_file, override, sentence):
    assert failing(recipe_file, override)[0].startswith(sentence)


@pytest.mark.parametrize(
    "override",
    ["rm.init_from=sft", "ppo.critic_from=sft", "rm.init_from=gpt2", "pmp.init_from=org/name", "ppo.init_from=t5"],
)
def test_possible_origins(recipe_file, override):
    check_recipe(recipe_file, [override])


NEW_MODEL = "model={architecture: {max_position_embeddings: 4096}}"


def test_nothing_to_start_from_names_the_stage_that_is_missing(recipe_file):
    found = failing(recipe_file, NEW_MODEL, "sft=null", "pmp=null", "rm=null")
    assert found[0].startswith("base: is missing")
    assert found[1:] == [
        "ppo.init_from: nothing to start from; add an 'sft' stage or name ppo.init_from",
        "ppo.reward_from: nothing to start from; add an 'rm' or 'pmp' stage or name ppo.reward_from",
    ]
    assert "rm.init_from: nothing to start from; add a 'pmp' or 'base' stage or name rm.init_from" in failing(
        recipe_file, NEW_MODEL, "pmp=null"
    )


def test_the_model_of_the_recipe_is_no_reward_model(recipe_file, tmp_path):
    (tmp_path / "lm").mkdir()
    found = failing(recipe_file, f"model={{path: {tmp_path / 'lm'}}}", "pmp=null", "rm=null")
    assert found == ["ppo.reward_from: nothing to start from; add an 'rm' or 'pmp' stage or name ppo.reward_from"]


def test_labelled_sets_need_the_model_that_is_sampled_from(recipe_file):
    assert failing(recipe_file, "sft=null", "ppo=null") == [
        "rm.data.0.path: 'tinyworld:comparisons' holds replies sampled from the sft stage's model; add an 'sft' stage"
    ]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["ppo.critic_warmup_steps=4"], "ppo.critic_warmup_steps: 4 leaves the policy none of the 4 optimizer steps "),
        (["ppo.num_ppo_epochs=3", "ppo.critic_warmup_steps=12"], "ppo.critic_warmup_steps: 12 leaves the policy none"),
        (
            ["sft.max_steps=7", "sft.lr_scheduler_type=linear", "sft.warmup_steps=7"],
            "sft.warmup_steps: 7 is not below max_steps (7)",
        ),
        (["ppo.ptx_coef=0.1", "ppo.ptx_ratio=0", "ppo.ptx_data=[a.jsonl]"], "ppo.ptx_ratio: 0 gives a step no pretr"),
        (
            ["model={architecture: {vocab_size: 299, max_position_embeddings: 4096}}"],
            "model.architecture.vocab_size: 299 leaves no room for words, since the 256 bytes",
        ),
        (["sft.data=[{path: a.jsonl, format: sharegtp}]"], "sft.data.0.format: there is no format 'sharegtp' for demo"),
        (["rm.eval_data=[{path: a.jsonl, format: alpaca}]"], "rm.eval_data.0.format: there is no format 'alpaca' for"),
        (["report_to=wandbb"], "report_to.0: there is no tracker 'wandbb'; did you mean 'wandb'?"),
        (["report_to=[wandbb]"], "report_to.0: there is no tracker 'wandbb'; did you mean 'wandb'?"),
        (["report_to=[codecarbon]"], "report_to.0: 'codecarbon' needs codecarbon, which is not installed"),
        (["report_to=[none]"], "report_to.0: 'none' is no tracker"),
    ],
)
def test_what_would_only_fail_late(recipe_file, overrides, sentence):
    assert sum(problem.startswith(sentence) for problem in failing(recipe_file, *overrides)) == 1


def test_what_is_just_possible(recipe_file):
    steps = ["sft.max_steps=7", "sft.lr_scheduler_type=linear", "sft.warmup_steps=6"]
    known = ["sft.data=[{path: a.jsonl, format: sharegpt}]", "rm.eval_data=[{path: a.jsonl, format: hh}]"]
    check_recipe(recipe_file, [*steps, *known, "rm.reference_data=[{path: a.jsonl, format: alpaca}]"])
    check_recipe(recipe_file, ["ppo.ptx_coef=0.1", "ppo.ptx_data=[{path: a.jsonl, split: lines}]"])


def test_a_bad_number_of_iterations_makes_no_finding_about_the_warmup(recipe_file):
    assert failing(recipe_file, "ppo.num_iterations=x") == ["ppo.num_iterations: must be an integer, not 'x' (text)"]


def test_output_dir_under_a_file(recipe_file, tmp_path):
    assert failing(recipe_file, f"output_dir={tmp_path}/r.yaml/out") == [
        f"output_dir: {tmp_path}/r.yaml is a file, not a folder"
    ]


def test_a_recipe_without_stages(recipe_file):
    assert failing(recipe_file, "sft=null", "pmp=null", "rm=null", "ppo=null")[0].startswith("has no stage")


def test_missing_input_stages_name_the_command(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    assert missing_inputs(recipe, "ppo") == ["sft", "rm"]
    assert missing_inputs(recipe, "sft") == []
    with pytest.raises(
        MissingFileError, match=r"ppo starts from sft and rm, which are not finished .*; run: align run r.yaml seed=1$"
    ):
        require_ready(recipe, "ppo", "r.yaml seed=1")
    for stage in ("sft", "rm"):
        (tmp_path / "out" / stage / "model").mkdir(parents=True)
    require_ready(recipe, "ppo", "r.yaml")


def test_require_ready_looks_at_its_own_stage_only(recipe_file):
    recipe = load_recipe(recipe_file, ["sft.data=[nowhere.jsonl]"])
    assert run_problems(recipe, ["pmp"]) == []
    require_ready(recipe, "pmp", "r.yaml")
    with pytest.raises(RecipeError, match=r"sft\.data\.0\.path: no such file"):
        require_ready(recipe, "sft", "r.yaml")
    with pytest.raises(RecipeError, match="has no stage 'base'; it has sft, pmp, rm, ppo"):
        require_ready(recipe, "base", "r.yaml")
