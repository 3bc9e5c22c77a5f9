"""The reward section: one part or a weighted list, every mistake told before anything heavy is imported."""

import json

import pytest

from align.recipe import RecipeError, dump_recipe, load_recipe
from align.recipe.check import check_recipe, describe_plan
from align.recipe.lineage import (
    Origin,
    code_hashes,
    critic_origin,
    inputs,
    judge_origins,
    reward_origins,
    user_code,
)
from align.recipe.reward_section import plain_parts

RECIPE = """\
name: t
output_dir: {out}
data_root: {root}
model: {{path: org/model}}
sft: {{data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}}
rm: {{data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}}
ppo:
  data: [a.jsonl]
  num_iterations: 100
  reward:
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")

    def written(*lines):
        file = tmp_path / "r.yaml"
        file.write_text(RECIPE.format(out=tmp_path / "out", root=tmp_path) + "".join(f"    {line}\n" for line in lines))
        return file

    return written


def failing(file, *overrides):
    with pytest.raises(RecipeError) as caught:
        check_recipe(file, overrides, world_size=1)
    return list(caught.value.problems)


def test_one_part_is_a_list_of_one_and_needs_no_weight(write):
    recipe = check_recipe(write("kind: format", "tags: [think, answer]", "then: nothing"), world_size=1)
    (part,) = recipe.ppo.reward
    assert (part.kind, part.label, part.tags, part.then) == ("format", "format", ("think", "answer"), "nothing")
    assert reward_origins(recipe) == {}
    assert critic_origin(recipe).value == "sft"  # no model judges, so the critic starts as the policy does
    assert set(inputs(recipe, "ppo")) == {"policy", "critic"}


FULL = (
    "- {kind: model, weight: 1}",
    "- {kind: model, name: other, model_from: org/judge, weight: 0.5, shift: 1.0, scale: 2.0, clip: 3}",
    "- {kind: length, maximum: 90, weight: 0.1}",
    "- kind: gate",
    "  weight: 1.0",
    "  helpfulness: {kind: model, model_from: rm}",
    "  safety: {kind: http, url: 'https://example.org/safety'}",
    "  unsafe: [harm, drugs]",
)


def test_a_list_keeps_its_order_loads_again_and_shows_in_the_plan(write, tmp_path):
    recipe = check_recipe(write(*FULL), world_size=1)
    assert [key for key, _ in plain_parts(recipe.ppo.reward)] == (
        ["reward.0", "reward.1", "reward.2", "reward.3.helpfulness", "reward.3.safety"]
    )
    origins = {role: (origin.kind, origin.value) for role, origin in reward_origins(recipe).items()}
    assert origins == {
        "reward.0": ("stage", "rm"),
        "reward.1": ("path", "org/judge"),
        "reward.3.helpfulness": ("stage", "rm"),
    }
    assert critic_origin(recipe).value == "rm"
    assert "reward.1 org/judge" in describe_plan(recipe, 1)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml", world_size=1) == recipe
    changed = load_recipe(tmp_path / "again.yaml", ["ppo.reward.3.threshold=0.2"], world_size=1)
    assert changed.ppo.reward[3].threshold == 0.2 and changed.ppo.reward[3].unsafe == ("harm", "drugs")


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        (
            ["- {kind: regx, pattern: a}"],
            ["ppo.reward.0.kind: there is no kind 'regx'; did you mean 'regex'? (line 11)"],
        ),
        (["- {pattern: a}"], ["ppo.reward.0.kind: is required but missing"]),
        (
            ["- {kind: regex, patern: a}"],
            ["ppo.reward.0.patern: unknown key; did you mean 'pattern'? (line 11)"],
        ),
        (["- {kind: regex, pattern: '('}"], ["ppo.reward.0.pattern: '(' is no regular expression"]),
        ([f"- {{kind: regex, pattern: '{'(' * 5000}'}}"], [f"ppo.reward.0.pattern: '{'(' * 57}...' is no regular"]),
        (
            ["- {kind: gate, helpfulness: {kind: model}, safety: {kind: gate}}"],
            ["ppo.reward.0.safety.kind: there is no kind 'gate'; it knows model, function, http"],
        ),
        (
            ["- {kind: gate, helpfulness: {kind: model, weight: 2}, safety: {kind: model, name: helpfulness}}"],
            [
                "ppo.reward.0.safety.name: is the name of helpfulness too",
                "ppo.reward.0.helpfulness.weight: has no place in a gate",
            ],
        ),
        (
            ["- {kind: model, weight: 1}", "- {kind: model}"],
            [
                "ppo.reward.1.weight: is required where reward has several parts",
                "ppo.reward.1.name: 'model' names two parts",
            ],
        ),
        (["- {kind: length}"], ["ppo.reward.0.maximum: is needed, or a minimum"]),
        (["- {kind: length, minimum: 9, maximum: 8}"], ["ppo.reward.0.minimum: 9 is more than maximum (8)"]),
        (["- {kind: length, maximum: 8, unit: words}"], ["ppo.reward.0.unit: must be 'tokens' or 'characters'"]),
        (["- {kind: format, tags: [think, think]}"], ["ppo.reward.0.tags: names a tag twice"]),
        (["- {kind: format, tags: []}"], ["ppo.reward.0.tags: must not be empty"]),
        (["- {kind: exact_match, scale: 0}"], ["ppo.reward.0.scale: must be above 0"]),
        (["- {kind: http, url: 'http://example.org'}"], ["ppo.reward.0.url: plain http to example.org"]),
        (
            ["- {kind: function, function: here.py}"],
            ["ppo.reward.0.function: 'here.py' must be package.module:name"],
        ),
        (["- {kind: model, model_from: sft}"], ["ppo.reward.0.model_from: 'sft' is no reward model"]),
        (
            ["- {kind: model, model_from: rn}"],
            ["ppo.reward.0.model_from: 'rn' is neither a stage nor a folder; did you"],
        ),
        (["- {kind: model, model_from: ./nowhere}"], ["ppo.reward.0.model_from: no such folder ./nowhere"]),
        (["- 3"], ["ppo.reward.0: must be a section (keys and values), not 3"]),
    ],
)
def test_mistakes_are_told_with_their_key(write, lines, problems):
    found = failing(write(*lines))
    assert len(found) == len(problems)
    assert all(one.startswith(words) for one, words in zip(found, problems, strict=True)), found


def test_the_reward_may_not_be_named_twice(write):
    assert failing(write("kind: model"), "ppo.reward_from=rm")[0].startswith(
        "ppo.reward_from: names the reward a second"
    )


GOLD = ("ppo.eval_data=[a.jsonl]", "ppo.gold_reward={kind: model, model_from: rm}")


def test_a_gold_reward_is_a_reward_of_its_own(write, tmp_path):
    recipe = check_recipe(write("kind: format"), GOLD, world_size=1)
    assert (recipe.ppo.gold_reward[0].kind, reward_origins(recipe)) == ("model", {})
    assert judge_origins(recipe) == {"gold_reward.0": Origin("stage", "rm")}
    assert critic_origin(recipe).value == "sft"  # what only looks on starts nothing
    assert inputs(recipe, "ppo")["gold_reward.0"] == Origin("stage", "rm")
    assert "gold_reward.0 rm" in describe_plan(recipe, 1)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml", world_size=1) == recipe
    parts = "ppo.gold_reward=[{kind: length, maximum: 9, weight: 1}, {kind: format, weight: -1}]"
    recipe = check_recipe(write("kind: model"), (GOLD[0], parts), world_size=1)
    assert [key for key, _ in recipe.ppo.judges()] == ["reward.0", "gold_reward.0", "gold_reward.1"]


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        ("[{kind: format}, {kind: format}]", "ppo.gold_reward.0.weight: is required where gold_reward has several"),
        ("{kind: regx, pattern: a}", "ppo.gold_reward.0.kind: there is no kind 'regx'; did you mean 'regex'?"),
        ("{kind: regex, pattern: '('}", "ppo.gold_reward.0.pattern: '(' is no regular expression"),
        ("{kind: model}", "ppo.gold_reward.0.model_from: is required here: name another model than the policy"),
        ("{kind: model, model_from: ./nowhere}", "ppo.gold_reward.0.model_from: no such folder ./nowhere"),
        ("{kind: model, model_from: sft}", "ppo.gold_reward.0.model_from: 'sft' is no reward model"),
        ("{kind: function, function: gone.py:f}", "ppo.gold_reward.0.function: no such file gone.py"),
        (
            "{kind: gate, helpfulness: {kind: format}, safety: {kind: format, name: helpfulness}}",
            "ppo.gold_reward.0.safety.name: is the name of helpfulness too",
        ),
        (
            "{kind: gate, helpfulness: {kind: format}, safety: {kind: model}}",
            "ppo.gold_reward.0.safety.model_from: is required here",
        ),
    ],
)
def test_mistakes_in_a_gold_reward_are_told_with_their_key(write, gold, problem):
    found = failing(write("kind: format"), GOLD[0], f"ppo.gold_reward={gold}")
    assert found[0].startswith(problem), found


def test_a_gold_reward_without_held_out_prompts_is_refused(write):
    (found,) = failing(write("kind: format"), GOLD[1])
    assert found.startswith("ppo.gold_reward: judges replies to held-out prompts alone: name some in eval_data")


LLM = "kind: llm, url: 'https://host.example/v1?key=secret1', model: m"


@pytest.mark.parametrize(
    "judge",
    [
        f"{{{LLM}, api_key_env: JUDGE_KEY, rubric: a.jsonl, parameters: {{max_tokens: 4096, seed: null}}}}",
        "{kind: rankings, path: a.jsonl}",
        "{kind: comparison, function: mine.py:better}",
        "{kind: gate, helpfulness: {kind: model, model_from: rm}, safety: {kind: length, maximum: 9}}",
    ],
)
def test_a_judge_is_one_of_many_and_no_reward(write, tmp_path, monkeypatch, judge):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", "k")
    (tmp_path / "mine.py").write_text("def better(prompts, first, second): ...\n")
    recipe = check_recipe(write("kind: format"), (GOLD[0], f"ppo.judge={judge}"), world_size=1)
    assert reward_origins(recipe) == {} and critic_origin(recipe).value == "sft"
    text = dump_recipe(recipe)
    assert "secret1" not in text and "secret1" not in repr(recipe)
    (tmp_path / "again.yaml").write_text(text.replace("***", "secret1"))
    assert load_recipe(tmp_path / "again.yaml", world_size=1) == recipe
    named = {key for key, _ in recipe.ppo.judges()} - {"reward.0"}
    if recipe.ppo.judge.kind == "gate":
        assert named == {"judge.helpfulness", "judge.safety"}
        assert judge_origins(recipe) == {"judge.helpfulness": Origin("stage", "rm")}
        assert inputs(recipe, "ppo")["judge.helpfulness"] == Origin("stage", "rm")
    else:
        assert named == {"judge"} and judge_origins(recipe) == {}
    of_user = {"ppo.judge.function": "mine.py:better"} if recipe.ppo.judge.kind == "comparison" else {}
    assert user_code(recipe, "ppo") == of_user and code_hashes(recipe).keys() == of_user.keys()


@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        ("{kind: lm, url: a, model: m}", "ppo.judge.kind: there is no kind 'lm'; did you mean 'llm'?"),
        ("{kind: llm, url: 'https://host/v1'}", "ppo.judge.model: is required but missing"),
        ("{kind: llm, url: 'http://host/v1', model: m}", "ppo.judge.url: plain http to host"),
        (f"{{{LLM}, api_key_env: GONE_KEY}}", "ppo.judge.api_key_env: the environment variable GONE_KEY is not set"),
        (f"{{{LLM}, rubric: gone.txt}}", "ppo.judge.rubric: no such file gone.txt"),
        (f"{{{LLM}, parameters: {{model: x}}}}", "ppo.judge.parameters.model: is not to be set; leave it out"),
        ("{kind: llm, url: 'https://host/v1?key=***', model: m}", "ppo.judge.url: *** stands where a secret was"),
        ("{kind: rankings, path: gone.csv}", "ppo.judge.path: no such file gone.csv"),
        ("{kind: rankings, file: a.jsonl}", "ppo.judge.file: unknown key"),
        ("{kind: comparison, function: mine.py}", "ppo.judge.function: 'mine.py' must be package.module:name"),
        ("{kind: comparison, function: gone.py:f}", "ppo.judge.function: no such file gone.py"),
        ("{kind: model}", "ppo.judge.model_from: is required here: name another model than the policy"),
        ("{kind: model, model_from: sft}", "ppo.judge.model_from: 'sft' is no reward model"),
        ("[{kind: format}]", "ppo.judge: must be a section"),
    ],
)
def test_mistakes_in_a_judge_are_told_with_their_key(write, judge, problem):
    found = failing(write("kind: format"), GOLD[0], f"ppo.judge={judge}")
    assert any(one.startswith(problem) for one in found), found


def test_a_judge_judges_held_out_prompts_and_stops_nothing(write):
    (found,) = failing(write("kind: format"), "ppo.judge={kind: format}")
    assert found.startswith("ppo.judge: compares replies to held-out prompts alone: name some in eval_data")
    early = "ppo.early_stopping={patience: 1, metric: eval/win_rate_greedy}"
    (found,) = failing(write("kind: format"), *GOLD, early, "ppo.evaluation.every_steps=1")
    assert found.startswith("ppo.early_stopping.metric: the judge only looks on")


def test_functions_are_looked_for_without_being_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')\ndef right(prompts, completions): ...\nalias = right\n")
    (tmp_path / "torn.py").write_text("def right(:\n")
    for good in ("mine.py:right", "mine.py:alias", "json:loads", f"{tmp_path}/mine.py:right"):
        check_recipe(write("kind: function", f"function: '{good}'"), world_size=1)
    for bad, words in (
        ("mine.py:wrong", "mine.py has no 'wrong'"),
        ("nowhere.py:right", "no such file nowhere.py"),
        ("torn.py:right", "torn.py is not Python"),
        ("no_such_package.mine:right", "there is no package 'no_such_package'"),
    ):
        (problem,) = failing(write("kind: function", f"function: '{bad}'"))
        assert problem.startswith(f"ppo.reward.0.function: {words}")


def test_the_keys_variable_must_be_set_and_the_key_is_never_saved(write, monkeypatch):
    file = write("kind: http", "url: https://example.org/score", "api_key_env: REWARD_KEY")
    monkeypatch.delenv("REWARD_KEY", raising=False)
    assert failing(file) == [
        "ppo.reward.0.api_key_env: the environment variable REWARD_KEY is not set; set it to the key"
    ]
    monkeypatch.setenv("REWARD_KEY", "sk-secret")
    assert "sk-secret" not in dump_recipe(check_recipe(file, world_size=1))


def test_what_a_url_holds_in_secret_is_written_nowhere_and_must_be_put_in_again(write, tmp_path):
    recipe = check_recipe(write("kind: http", "url: 'https://example.org/score?token=abcdef&v=2#x'"), world_size=1)
    (part,) = recipe.ppo.reward
    assert part.url == "https://example.org/score?token=abcdef&v=2#x"  # what is asked
    written = (dump_recipe(recipe), recipe.model_dump_json(), str(recipe.model_dump()), repr(recipe), str(part))
    assert not any("abcdef" in text for text in written)
    assert "url: https://example.org/score?token=***&v=***#***" in written[0]
    (tmp_path / "again.yaml").write_text(written[0])
    assert load_recipe(tmp_path / "again.yaml", world_size=1).ppo.reward[0].url.endswith("?token=***&v=***#***")
    (problem,) = failing(str(tmp_path / "again.yaml"))
    assert problem.startswith("ppo.reward.0.url: *** stands where a secret was left out")


def test_every_problem_of_a_list_is_told_at_once(write):
    def keys(*lines):
        return [problem.partition(":")[0] for problem in failing(write(*lines))]

    assert keys("- {kind: length, unit: token}", "- {kind: regex, pattern: 3}") == [
        "ppo.reward.0.unit",
        "ppo.reward.1.pattern",
    ]
    assert keys("- {kind: length, unit: tokens}", "- {kind: regex, pattern: '('}") == [
        "ppo.reward.0.weight",
        "ppo.reward.1.weight",
        "ppo.reward.0.maximum",
        "ppo.reward.1.pattern",
    ]


def test_checking_needs_no_torch(write, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, json; from align.recipe.check import check_recipe; "
        f"check_recipe({str(write(*FULL))!r}, world_size=1); "
        "print(json.dumps([name for name in ('torch', 'transformers', 'numpy', 'regex') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
