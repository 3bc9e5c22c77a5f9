"""Every program in examples/ is short, runs, and does what it says."""

import ast
import importlib.util
import io
import json
import math
import runpy
import statistics
import sys
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align import PPOConfig, PPOTrainer, cli
from align.data.encode import encode_prompts
from align.models.load import load_reward_model
from align.recipe.estimators import ESTIMATORS as FACTS
from align.recipe.estimators import Estimator
from align.recipe.load import dump_recipe
from align.runtime.packages import OURS
from align.trainers.ppo.advantages import ESTIMATORS, register
from data_formats.records import Message
from examples.experiments import rejection_sampling, reward_modelling
from reward.model import RewardModel
from tests.align.models.test_adapters import IDS, MASK, section, stir
from tests.align.stages.small_chain import small_recipe, write_data
from tests.align.trainers import ppo_case
from tests.commands import INSTALLED, ROOT, run
from tests.tiny_models import save_causal_lm

FILES = sorted((ROOT / "examples").glob("*.py"))
MEASURES = ("benchmark_", "compare_")  # these run below with tiny numbers
EXPERIMENTS = sorted((ROOT / "examples/experiments").glob("*.py"))  # they need finished runs
TOPICS = ("tea", "rain", "jazz", "maps")


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # a program finds its neighbours
        patch.syspath_prepend(ROOT / "examples")
        spec.loader.exec_module(module)
    return module


def program(name, folder):
    """Runs an example as `python` does, in `folder`; what it prints last, and the folder that it leaves there."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    return ast.literal_eval(printed.getvalue().splitlines()[-1]), folder / "runs/examples" / name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_short_and_is_run_here(file):
    text = file.read_text(encoding="utf-8")
    longest = 225 if file.stem.startswith(MEASURES) else 80  # a measurement holds two or three programs
    assert len(text.splitlines()) < longest and f"python examples/{file.name}" in text.split('"""')[1]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/examples").glob("*.py"))
    ways = (
        f'load("{file.stem}")',
        f'program("{file.stem}"',
        f"examples/{file.name}",
        f"from examples import {file.stem}",
    )
    assert any(way in tests for way in ways)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_says_how_it_is_run_and_starts_from_anywhere(file, tmp_path, monkeypatch, capsys):
    assert f"python examples/experiments/{file.name}" in file.read_text(encoding="utf-8").split('"""')[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "examples" not in path])  # of others, imported here
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(file), run_name="__main__")
    assert not end.value.code and "usage: " in capsys.readouterr().out


def test_what_a_program_imports_when_it_needs_it_is_there():
    """Names of ours that no `--help` asks for."""
    for file in (ROOT / "examples").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = (isinstance(node, ast.ImportFrom) and node.module) or ""
            needs_vllm = name.startswith("rollouts.vllm") and find_spec("vllm") is None
            if name.split(".")[0] in ("align", *OURS) and not needs_vllm:
                exec(compile(ast.Module([node], []), str(file), "exec"), {})


@pytest.mark.slow
def test_ppo_with_a_function_as_reward(tmp_path):
    figures, left = program("ppo_function_reward", tmp_path)
    assert figures["before"] < 0.3
    assert figures["after"] > figures["before"] + 0.25
    assert (left / "model" / "model.safetensors").is_file()
    assert len((left / "metrics.jsonl").read_text().splitlines()) >= 30


def test_code_of_ones_own_in_a_recipe(tmp_path):
    figures = load("in_a_recipe").main(tmp_path)
    first = json.loads((tmp_path / "run/rm/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(1, abs=0.15)  # of scores that are hardly apart: log 2 by our own loss
    assert figures["train_loss"] < 0.5 and figures["accuracy"] > 0.9
    assert (tmp_path / "run/rm/code.json").is_file()


@pytest.mark.slow
def test_a_cost_a_token_makes_replies_short(tmp_path):
    figures, _ = program("ppo_short_answers", tmp_path)
    assert figures["after"] < 0.5 * figures["before"]
    plain = load("ppo_short_answers").train(PPOTrainer, tmp_path / "plain")
    assert plain["after"] > 0.7 * plain["before"]


@pytest.mark.slow
def test_the_choices_of_well_known_papers(tmp_path):
    figures, _ = program("ppo_published_variants", tmp_path)
    assert figures["after"] > figures["before"] + 0.2
    trainer = ppo_case.trainer(
        tmp_path / "by_hand",
        kind=load("ppo_published_variants").AsPublished,
        missing_eos_penalty=0.7,
        length_penalty=0.5,
        length_penalty_free=3,
    )
    scores_N, ended_N, lengths_N = torch.tensor([4.0, 5.0]), torch.tensor([True, False]), torch.tensor([2, 4])
    assert trainer.penalize_scores(scores_N, ended_N, lengths_N).tolist() == pytest.approx([4.0, -0.7 - 0.5])


@pytest.mark.parametrize("by_reply", [False, True])
def test_the_estimate_in_the_loss_is_weighed_as_the_loss_is(by_reply, tmp_path):
    kind = load("ppo_published_variants").EstimateInLoss
    trainer = ppo_case.trainer(tmp_path, kind=kind, loss_aggregation="sequence" if by_reply else "token")
    lengths = [3, 5, 1, 4, 2, 6, 2, 4]
    batch, _ = trainer.make_experience(ppo_case.samples(lengths), torch.arange(8, dtype=torch.float64))
    logps_NS = batch.old_logps_NS + 0.3 * torch.randn(batch.mask_NS.shape, generator=torch.Generator().manual_seed(0))
    estimates = []
    for row, mask_S in enumerate(batch.mask_NS):
        apart = (logps_NS - batch.ref_logps_NS)[row][mask_S].tolist()
        estimates.append(sum(math.exp(-d) - 1 + d for d in apart) / (lengths[row] if by_reply else 1))
    with_estimate, plain = trainer.policy_loss(logps_NS, batch)[0], PPOTrainer.policy_loss(trainer, logps_NS, batch)[0]
    assert float(with_estimate - plain) == pytest.approx(0.04 * sum(estimates), rel=1e-3)


@pytest.mark.slow
def test_margins_spread_the_scores_of_clear_pairs(tmp_path):
    example = load("reward_with_margin")
    (wide, left), plain = program("reward_with_margin", tmp_path), example.main(tmp_path / "plain", margins=False)
    # three raters of four: the best difference d solves 3 sigmoid(margin - d) = sigmoid(margin + d)
    assert plain["manners"] == pytest.approx(math.log(3), abs=0.15)
    assert wide["manners"] == pytest.approx(3.69, abs=0.3)
    assert wide["length"] == pytest.approx(math.log(3), abs=0.15)
    assert RewardModel.from_pretrained(left / "model").config.hidden_size == 32
    losses_B = example.MarginRewardTrainer.compute_pair_losses(
        None, torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]), {"margins_B": torch.tensor([0.0, 3.0])}
    )
    assert losses_B.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))])


@pytest.mark.slow
def test_weights_of_tokens_move_the_answer(tmp_path):
    """The least of sum(weight * -log p) / 4 lies where p is the answer's share of the weights."""
    weighted, left = program("sft_token_weights", tmp_path)
    plain = load("sft_token_weights").main(tmp_path / "plain", weighted=False)
    assert weighted == pytest.approx({"Yes.": 6 / 9, "No.": 3 / 9}, abs=0.03)
    assert plain == pytest.approx({"Yes.": 1 / 4, "No.": 3 / 4}, abs=0.03)
    assert (left / "model" / "model.safetensors").is_file()


@contextmanager
def with_its_estimator():
    """What the example registers no other file's tests know."""
    yield
    for table in (ESTIMATORS, FACTS):
        del table["opo"]


@pytest.mark.slow  # its advantages are computed by hand below
@with_its_estimator()
def test_a_fifth_estimator_learns_without_a_critic(tmp_path):
    figures, left = program("ppo_optimal_baseline", tmp_path)
    assert figures["before"] < 2 and figures["after"] > figures["before"] + 4
    lines = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and not any(key.startswith("value/") for line in lines for key in line)
    assert all(line["policy/ratio_max"] == line["policy/ratio_min"] == 1.0 for line in lines)


@pytest.fixture(scope="module")
def optimal_baseline():
    """The example, imported once."""
    with with_its_estimator():
        yield load("ppo_optimal_baseline")


@pytest.mark.parametrize("whiten", [False, True])
def test_its_advantages_by_hand(optimal_baseline, tmp_path, whiten):
    """Against plain Python over the definition: reward of the reply minus the mean reward a token of all replies."""
    options = {"rollout": {"num_generations": 3}, "rollout_batch_size": 2, "whiten_advantages": whiten}
    trainer = ppo_case.trainer(tmp_path, advantage="opo", **options)
    nan = math.nan  # stands where no token of a reply is
    rewards_NS = [[nan, -0.5, 2.0], [1.0, nan, nan], [0.25, 0.25, 3.0], [nan, nan, 7.0], [nan, -1, -1], [nan, 1, 0.0]]
    rewards_NS = torch.tensor(rewards_NS, dtype=torch.float64)
    mask_NS = ~rewards_NS.isnan()
    # replies are worth 1.5, 1, 3.5 and 7, -2, 1, and have 2, 1, 3 and 1, 2, 2 tokens
    first, second = (2 * 1.5 + 1 + 3 * 3.5) / 6, (7 - 2 * 2 + 2 * 1) / 5
    expected = [1.5 - first, 1 - first, 3.5 - first, 7 - second, -2 - second, 1 - second]
    tokens = [value for value, row in zip(expected, mask_NS.sum(1).tolist(), strict=True) for _ in range(row)]
    mean, std = statistics.fmean(tokens), statistics.pstdev(tokens)
    advantages_NS, targets_NS, found = trainer.compute_advantages(rewards_NS, None, mask_NS)
    assert found == pytest.approx(std, abs=1e-12)
    for row, value in enumerate(expected):
        wanted = (value - mean) / std if whiten else value
        assert advantages_NS[row][mask_NS[row]].tolist() == pytest.approx([wanted] * int(mask_NS[row].sum()))
    assert advantages_NS[~mask_NS].eq(0).all() and targets_NS is None


def test_a_registered_estimator_is_known_to_recipes_and_its_name_is_taken(optimal_baseline):
    assert PPOConfig(num_iterations=9, advantage="opo").trained_roles == ("policy",)
    with pytest.raises(ValueError, match=r"num_generations: 1 leaves a reply none .* advantage=opo needs at least 2"):
        PPOConfig(num_iterations=9, advantage="opo", rollout={"num_generations": 1})
    register("opo", Estimator(groups=True))(optimal_baseline.OptimalBaseline)  # as a cell that is run twice does
    for name in ("opo", "rloo"):
        with pytest.raises(ValueError, match=f"there is an advantage estimator '{name}' already"):
            register(name, Estimator())(type("Another", (), {}))
    assert PPOConfig(num_iterations=9, advantage="rloo").estimator.groups
    with pytest.raises(ValueError, match=r"'other': say what a recipe must know of it, register\('other', Estimator"):
        register("other")(type("Other", (), {}))


def test_the_command_line_of_a_program_knows_what_the_program_registered(optimal_baseline, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n' * 4, encoding="utf-8")
    recipe = {
        "name": "own",
        "output_dir": str(tmp_path / "run"),
        "model": {"path": "org/model"},
        "ppo": {
            "data": [str(tmp_path / "prompts.jsonl")],
            "init_from": "org/model",
            "reward_from": "org/reward",
            "advantage": "opo",
            "num_iterations": 2,
            "rollout_batch_size": 4,
            "num_mini_batches": 2,
            "micro_batch_size": 4,
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    assert cli.main(["check", str(tmp_path / "recipe.yaml")]) == 0
    assert "opo advantages, without a critic" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_policy_within_a_kl_budget_is_kept(tmp_path):
    figures, left = program("ppo_kl_budget", tmp_path)
    assert figures["kl"] <= 3.0 < figures["stopped_kl"] and figures["stopped_at"] < 60
    assert figures["score"] > 2 * figures["before"]
    lines = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line for line in lines if "eval/kl" in line}
    assert max(looks) == max(line["step"] for line in lines) == figures["stopped_at"]
    assert figures["score"] == max(line["eval/score"] for line in looks.values() if line["eval/kl"] <= 3.0)
    # the folder holds the policy of that step: its greedy replies are worth what was logged
    model = AutoModelForCausalLM.from_pretrained(left / "best")
    tokenizer = AutoTokenizer.from_pretrained(left / "best")
    stops, vowels = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]), 0
    for ids in encode_prompts(tokenizer, [[Message("user", f"Say something about {topic}.")] for topic in TOPICS]):
        reply = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=stops)[0]
        vowels += sum(character in "aeiou" for character in tokenizer.decode(reply[len(ids) :]))
    assert vowels / len(TOPICS) == looks[figures["step"]]["eval/score_greedy"]


@pytest.mark.slow
def test_the_notebook_from_top_to_bottom(tmp_path):
    figures, left = program("ppo_notebook", tmp_path)
    assert figures["after"] > figures["before"] + 1 and figures["kl"] > 0
    assert (left / "curves.png").read_bytes().startswith(b"\x89PNG") and (left / "model/model.safetensors").is_file()
    assert len((left / "metrics.jsonl").read_text().splitlines()) == 30


@pytest.mark.slow
@pytest.mark.needs("bitsandbytes")
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_memory_and_time_of_adapters(tmp_path, capsys):
    """Tiny: that every arm runs and holds less than the one before; the seconds of so small a run are noise."""
    words = ["--rows", "1", "--length", "16", "--steps", "2", "--dtype", "float32"]
    figures = load("benchmark_adapters").main(tmp_path, words)
    assert [json.loads(line)["adapter"] for line in capsys.readouterr().out.splitlines() if line[:1] == "{"] == [
        arm["adapter"] for arm in figures
    ]
    full, full8, lora, qlora, paged = figures
    assert full["trained"] == full8["trained"] == 1 and lora["trained"] == qlora["trained"] < 0.1
    if "held GiB" in full:
        parameters = load("benchmark_adapters").GIB * full["held GiB"] / 16  # weight, gradient, two moments in float32
        assert parameters == pytest.approx(6033664, rel=1e-5)
        sizes = [arm["held GiB"] for arm in (full, full8, lora, qlora, paged)]
        assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.5 * sizes[0]
    assert all(math.isfinite(arm["loss"]) and arm["seconds"] > 0 for arm in figures)


@pytest.mark.slow
def test_reward_training_beside_trl_on_the_same_pairs(tmp_path):
    """Tiny: that all arms start alike, train as many steps on the same ids, and what is finished is taken over."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(small_recipe(tmp_path)), encoding="utf-8")
    write_data(tmp_path)
    example, out = load("compare_reward_trl"), tmp_path / "figures.json"
    words = [str(tmp_path / "recipe.yaml"), "rm.center_scores=false", "--seeds", "0", "1", "--out", str(out)]
    figures = example.main(words)
    assert json.loads(out.read_text()) == figures
    assert list(figures["arms"]) == ["ours", "ours after pmp", "trl"]
    pairs = [figures["arms"][name]["by_seed"][seed]["pairs"] for name in figures["arms"] for seed in (0, 1)]
    assert len(set(pairs)) == 1 and figures["arms"]["trl"]["pooled"]["pairs"] == 2 * pairs[0] > 0
    assert figures["same_ids"] == figures["whole_pairs"] == figures["rows"] > 0
    assert figures["steps"] == {"ours": 3, "trl": 3} and figures["start_gap"] < 1e-5
    whole = figures["differences"]["ours - trl"]["pooled"]
    accuracy = {name: arm["pooled"]["accuracy"] for name, arm in figures["arms"].items()}
    assert whole["low"] <= whole["difference"] <= whole["high"]
    assert whole["difference"] == pytest.approx(accuracy["ours"] - accuracy["trl"])  # one pair a prompt
    folder = tmp_path / "run/compare_reward_trl/seed-0"
    times = {name: (folder / name / "eval.jsonl").stat().st_mtime_ns for name in ("ours", "ours_after_pmp", "trl")}
    assert example.main(words) == figures
    assert times == {name: (folder / name / "eval.jsonl").stat().st_mtime_ns for name in times}


@pytest.mark.slow
def test_an_example_in_a_process_of_its_own_from_another_folder(tmp_path):
    done = run(sys.executable, ROOT / "examples/in_a_recipe.py", cwd=tmp_path, env=INSTALLED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("{")
    assert (tmp_path / "runs/examples/in_a_recipe").is_dir()


@pytest.mark.slow
def test_the_memory_of_roles_is_measured_in_processes_of_their_own(capsys):
    example = load("benchmark_roles")
    tiny = ["--width", "256", "--layers", "2", "--vocab", "4096", "--rank", "2", "--reply", "4"]
    table = example.main(tiny)
    full, lora, roles = (table[arm] for arm in ("full", "lora", "roles"))
    one = full["parameters"] / 4
    assert lora["parameters"] > 3.5 * one > 2 * roles["parameters"] and full["trained"] > 40 * roles["trained"]
    assert roles["trained"] == lora["trained"] and roles["checkpoint"] < full["checkpoint"] / 20
    assert 0 < roles["peak"] < lora["peak"] < full["peak"] and roles["ratio"] < 1
    assert "| four roles on one backbone | " in capsys.readouterr().out


def test_speeds_of_engines_are_medians_and_ratios_of_the_same_round(monkeypatch):
    example = load("benchmark_rollouts")
    seconds = iter([9, 9, 1, 2, 4, 1, 2, 8])  # a round to warm up, then three of two ways
    clock = [0.0]
    monkeypatch.setattr(example.time, "perf_counter", lambda: clock[0])

    def way():
        clock[0] += next(seconds)
        return 8

    table = example.medians({"vllm": way, "bare": way}, rounds=3)
    assert table == {"vllm": 4.0, "bare": 4.0, "vllm/bare": 2.0}
    prompts = example.make_prompts(20, 64, 100)
    assert 32 <= min(map(len, prompts)) <= max(map(len, prompts)) <= 96


@pytest.mark.slow
@pytest.mark.needs("vllm")
def test_engines_are_measured_on_the_same_requests():
    example = load("benchmark_rollouts")
    example.SHAPE |= {"num_hidden_layers": 1, "vocab_size": 300}
    tiny = [
        "--batch-sizes",
        "4",
        "--prompt-length",
        "8",
        "--new-tokens",
        "4",
        "--rounds",
        "1",
        "--kv-cache-gib",
        "0.05",
    ]
    table = example.main(tiny)
    assert table["batch 4"].keys() == {"vllm", "bare", "hf", "vllm/bare", "vllm/hf"}
    assert min(table["batch 4"].values()) > 0 and table["sync"]["seconds"] > 0


def test_seconds_of_an_iteration_leave_the_first_two_out(tmp_path):
    keys = ("seconds/rollout", "seconds/update", "seconds/sync", "engine/staleness")
    lines = [
        {"time": time, "score/mean": 0.0} | dict.fromkeys(keys, value)
        for time, value in ((0, 50), (90, 50), (92, 1), (95, 2), (99, 3))
    ]
    lines.insert(2, {"time": 91, "eval/score": 1.0})
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load("benchmark_overlap").iteration_seconds(file) == {"seconds": 3} | dict.fromkeys(keys, 2)


def test_the_table_of_the_rejection_experiments(tmp_path, capsys):
    """The arms themselves are run on a finished miniature in tests/align/stages/test_quickstart_small.py."""
    example = rejection_sampling
    figures = dict.fromkeys(example.COLUMNS, 0.5)
    by_k = [{"k": k, "best": k + 0.0, "median": 1.0, "gap": k - 1.0} for k in (1, 2)]
    found = [
        {"seed": seed, "arms": {"sft": figures | {"gold": 0.5 + seed}, "k2": figures, "rounds": figures}, "by_k": by_k}
        for seed in (0, 1)
    ]
    example.print_tables(found, example.Settings(rounds=3, count=10))
    text = capsys.readouterr().out
    assert "| SFT | 1.000 [0.500, 1.500] | 0.500 [0.500, 0.500] |" in text and "| RS, one round, K = 2 | 0.500" in text
    assert "| RS, 3 rounds of K = 10, best of all rounds |" in text and "| 2 | 2.000 [2.000, 2.000] |" in text
    assert example.main([str(tmp_path)]) == 1
    assert "holds no finished chain with ppo" in capsys.readouterr().err


def test_the_table_of_the_reward_experiments(tmp_path, capsys):
    """The arms themselves are run on a finished miniature in tests/align/stages/test_quickstart_small.py."""
    right = {"clean": [("p", 4, 1.0), ("q", 1, -1.0)], "crowd": [("c", 1, 2.0)]}
    better = {"clean": [("p", 4, 1.0), ("q", 1, 1.0)], "crowd": [("c", 1, -2.0)]}
    lines = reward_modelling.table([("first", [right]), ("second", [better])]).splitlines()
    close, wide = math.log1p(math.exp(-1)), (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2
    assert lines[2] == f"| first | 50.0 | 50.0 | 100.0 | 0.0 | 100.0 | {wide:.3f} |  |"
    assert lines[3] == f"| second | 100.0 | 100.0 | 100.0 | 100.0 | 0.0 | {close:.3f} | +50.0 [-48.0, +148.0] |"
    assert [reward_modelling.grade(gap) for gap in (0.25, 0.5, 0.75, 1.0, 2.5)] == [1, 2, 3, 4, 4]
    names = [arm.name for arms in reward_modelling.tables().values() for arm in arms]
    made = {arm.name: arm for arms in reward_modelling.tables().values() for arm in arms}
    assert all(arm.origin in {"base", "pmp", *names} for arm in made.values())
    assert reward_modelling.main([str(tmp_path)]) == 1
    assert "run `align quickstart" in capsys.readouterr().err


def test_trls_arm_starts_with_our_adapter(tmp_path):
    model = save_causal_lm(tmp_path)
    ours = stir(load_reward_model(model, section(model, "lora"))).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, pad_token_id=256)
    theirs = load("compare_reward_trl").same_start(plain, ours, section(model, "lora")).eval()
    with torch.no_grad():
        scores = ours(input_ids=IDS, attention_mask=MASK), theirs(input_ids=IDS, attention_mask=MASK).logits[:, 0]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
    trained = [name for name, weight in theirs.named_parameters() if weight.requires_grad]
    assert all("lora_" in name or "score" in name for name in trained)
