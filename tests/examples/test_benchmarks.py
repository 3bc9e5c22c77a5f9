"""The benchmarks at tiny sizes: sides of ours and the floor run here, and what they measure is what they say."""

import importlib.util
import json
import sys

import pytest
import torch
from transformers import DynamicCache

from align.data.encode import encode_demonstrations, encode_prompts
from data_formats.records import Demonstration, Message
from tests.commands import ROOT

FOLDER = ROOT / "examples/benchmarks"
SHARED = ("measuring", "small_models", "bare", "trl_environment")
SCRIPTS = sorted(file for file in FOLDER.glob("*.py") if file.stem not in SHARED)


@pytest.fixture(scope="module", autouse=True)
def neighbours():
    """A script finds its neighbours, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield
    for name in (*SHARED, *(file.stem for file in SCRIPTS)):
        sys.modules.pop(name, None)


def load(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_benchmark_says_how_it_is_run(file):
    assert f"python examples/benchmarks/{file.name}" in file.read_text(encoding="utf-8").split('"""')[1]


def test_new_figures_replace_those_of_the_same_cases(tmp_path):
    measuring = load("measuring")
    result = {"subject": "sft", "unit": "token", "rounds": 5, "machine": {"cores": 2}, "cases": []}
    assert measuring.cases_kept(tmp_path, result, ["a"]) == []
    cases = [{"name": "a"}, {"name": "b"}]
    (tmp_path / "sft.json").write_text(json.dumps(result | {"cases": cases}))
    assert measuring.cases_kept(tmp_path, result, ["a"]) == [{"name": "b"}]
    assert measuring.cases_kept(tmp_path, result | {"machine": {"cores": 4}}, ["a"]) == []
    assert measuring.cases_kept(tmp_path, result | {"rounds": 1}, ["a"]) == []


@pytest.mark.parametrize("side", ["align", "floor", "lean"])
def test_an_iteration_of_ppo(side):
    ppo, measuring = load("ppo"), load("measuring")
    case = {**ppo.CASES["B"], **ppo.TINY}
    figures = measuring.turns_here(ppo.SIDES[side], case, 2)
    assert len(figures) == 2 and all(turn["clock"] > 0 and turn["cpu"] > 0 and turn["items"] == 1 for turn in figures)
    phases = {name for name in figures[0] if name.startswith("seconds/")}
    assert phases >= {"seconds/rollout", "seconds/score", "seconds/experience", "seconds/update"}


@pytest.mark.parametrize(
    ("script", "case", "side"),
    [
        ("sft", "plain", "align"),
        ("sft", "packed", "align"),
        ("reward_models", "4:1", "align"),
        ("reward_models", "score-8", "align"),
        ("reward_models", "score-8", "plain"),
        ("serve_reward", "128", "served"),
        ("serve_reward", "128", "plain"),
        ("data", "read", "align"),
        ("data", "encode", "align"),
        ("data", "pack", "align"),
        ("decode", "B4", "align"),
        ("decode", "B4", "generate"),
        ("decode", "B4", "bare"),
    ],
)
def test_our_side(script, case, side):
    module, measuring = load(script), load("measuring")
    settled = {**module.CASES[case], **(load("ppo").TINY if script == "decode" else module.TINY)}
    settled |= {"stage": case}
    figures = measuring.turns_here(module.SIDES[side], settled, 2)
    assert len(figures) == 2 and all(turn["clock"] > 0 and turn["items"] > 1 for turn in figures)
    units = {"read": 200, "encode": 200, "pack": 200, "4:1": 4, "score-8": 32, "B4": 4 * 2 * 4}
    assert figures[0]["items"] == figures[1]["items"] == units.get(case, figures[0]["items"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "case"), [("sft", "plain"), ("sft", "packed"), ("reward_models", "4:1"), ("data", "encode")]
)
def test_the_other_side_does_as_much(script, case):
    module, measuring = load(script), load("measuring")
    settled = {**module.CASES[case], **module.TINY, "stage": case}
    ours, theirs = (measuring.turns_here(module.SIDES[side], settled, 1) for side in ("align", "trl"))
    assert ours[0]["items"] == theirs[0]["items"]


def test_chats_are_learnt_with_the_same_ids_and_masks():
    """Ours, and those of the chat template that TRL asks."""
    sft, made = load("sft"), load("small_models")
    case = {**sft.CASES["plain"], "chats": 5}
    names = made.tokenizer(case["vocab"])
    for row, chat in zip(sft.encoded(case), sft.chats(case), strict=True):
        theirs = names.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
        assert row["input_ids"] == theirs["input_ids"]
        assert [int(label != -100) for label in row["labels"]] == theirs["assistant_masks"]
    words = sorted(sum(len(turn["content"].split()) for turn in chat) for chat in sft.chats(sft.CASES["plain"]))
    assert words[0] < 40 and words[-1] > 4 * words[0]


def test_data_is_prepared_to_the_same_ids_and_masks():
    data = load("data")
    case, names = {**data.TINY, "chats": 20}, data.make_tokenizer(data.TINY)
    records = [Demonstration(tuple(Message(**turn) for turn in chat)) for chat in data.chats(20)]
    rows, _ = encode_demonstrations(names, records, data.MAX_LENGTH, "error")
    for row, chat in zip(rows, data.chats(case["chats"]), strict=True):
        theirs = names.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
        assert row["input_ids"] == theirs["input_ids"]
        assert [int(label != -100) for label in row["labels"]] == theirs["assistant_masks"]


def test_groups_have_the_lengths_asked_for():
    rewards = load("reward_models")
    groups = rewards.make_groups(rewards.CASES["4:1"] | {"length": 100})
    prompts = [len(group["prompt_ids"]) for group in groups]
    replies = [len(reply) for group in groups for reply in group["reply_ids"]]
    assert 72 <= min(prompts) <= max(prompts) <= 88 and 18 <= min(replies) <= max(replies) <= 22


def test_growth_by_hand(tmp_path):
    scaling, measuring = load("scaling"), load("measuring")
    assert scaling.exponent([(1, 3), (2, 12), (4, 48)]) == pytest.approx(2)
    cases = [
        {
            "axis": axis,
            "size": size,
            "sides": {
                side: [{"cpu": size**power + noise, "peak": 2**30 + 2**20 * size} for noise in (-0.1, 0, 0.1)]
                for side, power in (("align", 1), ("trl", 2))
            },
        }
        for axis in ("reply", "memory")
        for size in (4, 8, 16)
    ]
    result = {"subject": "scaling", "rounds": 3, "machine": measuring.machine(), "cases": cases}
    assert (
        scaling.table(result).splitlines()[2] == "| tokens of a reply | 4–16 | 4 to 16; 1.00; 1 | 16 to 256; 2.00; 1 |"
    )
    measuring.write(result, tmp_path, scaling.table)
    page, marks = tmp_path / "page.md", "<!-- scaling -->\nnone\n<!-- end -->"
    page.write_text(f"before\n{marks}\nafter\n")
    (tmp_path / "assets").mkdir()
    for _ in range(2):  # what was put there is replaced
        load("all").main(["--out", str(tmp_path), "--table", str(page)])
        text = page.read_text()
        assert text.startswith("before\n<!-- scaling -->\n| size |") and text.endswith(
            "3 rounds.\n<!-- end -->\nafter\n"
        )
    for name in ("scaling", "scaling-dark"):
        assert (tmp_path / f"assets/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.needs("datasketch")
def test_cleaning_is_measured_step_by_step(tmp_path):
    cleaning, measuring = load("cleaning"), load("measuring")
    size, file = 150, tmp_path / "rows.jsonl"
    cleaning.write_rows(file, size)
    assert len(set(file.read_text().splitlines())) < size  # some are repeated
    case = {"size": size, "file": str(file)}
    found = {side: measuring.turns_here(work, case)[0] for side, work in cleaning.SIDES.items()}
    assert {figures["items"] for figures in found.values()} == {size}
    steps = list(found["convert"]["steps"].values())
    assert len(steps) == 15 and steps[0][1] == size and sum(dropped for *_, dropped in steps) >= 5
    reached = [seen - dropped for _, seen, dropped in steps]
    assert reached[-1] == found["convert"]["left"] and [seen for _, seen, _ in steps[1:]] == reached[:-1]
    shown = cleaning.table({"cases": [case | found]}).splitlines()
    assert shown[0] == "|  | 150 rows | dropped |" and len(shown) == 2 + 1 + 15 + 3 + 4 + 1


def test_both_sides_get_the_same_prompts():
    ppo, made = load("ppo"), load("small_models")
    for name in ("A", "B"):
        case = ppo.CASES[name] | {"prompts": 4}
        ids = made.prompt_ids(case)
        conversations = [[Message("user", question)] for question in made.questions(case)]
        assert ids == encode_prompts(made.tokenizer(case["vocab"]), conversations), name
        assert all(case["shortest"] <= len(prompt) <= case["longest"] for prompt in ids)


PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[:2] for prompt in PROMPTS]], ids=["mixed", "alike"])
def test_the_floor_computes_what_plain_passes_do(times, prompts):
    bare, made = load("bare"), load("small_models")
    model = made.make("Qwen2ForCausalLM", load("ppo").TINY).double()
    replies_NR = torch.randint(5, 60, (len(prompts) * times, 5), generator=torch.Generator().manual_seed(0))
    found_NR = bare.logps(model.lm_head, bare.reply_states(model.model, prompts, replies_NR, times), replies_NR)
    plain = []
    for at, reply in enumerate(replies_NR):
        prompt = prompts[at // times]
        logps_TV = model(torch.tensor([prompt + reply.tolist()])).logits[0].float().log_softmax(-1)
        plain.append(logps_TV[len(prompt) - 1 : -1].gather(1, reply[:, None])[:, 0])
    torch.testing.assert_close(found_NR, torch.stack(plain))
    mine, its = (
        torch.autograd.grad(loss.sum(), list(model.parameters()), retain_graph=True) for loss in (found_NR, sum(plain))
    )
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[:2] for prompt in PROMPTS]], ids=["mixed", "alike"])
def test_the_floors_replies_are_the_likeliest_of_a_sharp_model(times, prompts):
    """Logits so far apart that every draw is the likeliest token: those of transformers' greedy `generate`."""
    bare, made = load("bare"), load("small_models")
    model = made.make("Qwen2ForCausalLM", load("ppo").TINY).eval()
    with torch.no_grad():
        model.lm_head.weight *= 1e4
    replies_NR = bare.decode(model, prompts, times, 6)
    assert replies_NR.shape == (len(prompts) * times, 6)
    for at, reply in enumerate(replies_NR):
        prompt = torch.tensor([prompts[at // times]])
        whole = model.generate(
            prompt, max_new_tokens=6, do_sample=False, eos_token_id=None, past_key_values=DynamicCache()
        )
        assert whole[0, prompt.shape[1] :].tolist() == reply.tolist()


def test_a_table_by_hand():
    measuring = load("measuring")
    turns = {"align": [2.0, 4.0, 3.0], "trl": [6.0, 8.0, 9.0]}
    sides = {
        side: [{"clock": value, "cpu": 2 * value, "items": 1, "peak": 2**30} for value in values]
        for side, values in turns.items()
    }
    result = {"subject": "x", "unit": "iteration", "cases": [{"words": "A: some", "sides": sides}]}
    head, _, row = measuring.table(result).splitlines()
    assert head.startswith("| case | align, seconds: clock; CPU | trl, seconds: clock; CPU | trl / align: clock; CPU |")
    # of 2, 3, 4: 3, quartiles 2.5 and 3.5; of the rounds' ratios 3, 2, 3: 3, quartiles 2.5 and 3
    assert row == ("| A: some | 3 (2.5–3.5); 6 (5–7) | 8 (7–8.5); 16 (14–17) | 3 (2.5–3); 3 (2.5–3) | 1.00, 1.00 |")
    speeds = measuring.table(result | {"unit": "tokens"}).splitlines()[2]
    assert "0.333 (0.292–0.417)" in speeds and "3 (2.5–3)" in speeds


@pytest.mark.slow
def test_the_program_measures_sides_in_processes_of_their_own(tmp_path, capsys):
    words = ("--tiny", "--cases", "A", "--sides", "align", "floor", "--rounds", "1", "--out", str(tmp_path / "figures"))
    load("ppo").main([*words])
    assert capsys.readouterr().out == (tmp_path / "figures/ppo.md").read_text()
    result = json.loads((tmp_path / "figures/ppo.json").read_text())
    assert {side: len(turns) for side, turns in result["cases"][0]["sides"].items()} == {"align": 1, "floor": 1}


def environment(folder, release):
    """A folder that looks like an environment with that TRL."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    python = folder / "bin/python"
    python.write_text(f"#!/bin/sh\necho {release}\n" if release else "#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    return folder


def test_only_an_environment_of_its_own_is_made_trls(tmp_path, monkeypatch):
    trl = load("trl_environment")
    ours = environment(tmp_path / "ours", trl.RELEASE)
    assert trl.interpreter(ours) == str(ours / "bin/python")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").touch()
    (tmp_path / "file").touch()
    other = environment(tmp_path / "other", "1.13.0")
    for folder, said in ((other, "holds TRL 1.13.0"), (tmp_path / "photos", "else"), (tmp_path / "file", "else")):
        with pytest.raises(SystemExit, match=said):
            trl.interpreter(folder)
    with pytest.raises(SystemExit, match="cannot be made an environment"):
        trl.interpreter(tmp_path / "file/below")
    made = []
    monkeypatch.setattr(trl.venv, "create", lambda folder, with_pip: made.append(folder))
    monkeypatch.setattr(trl, "_install", lambda python, folder: None)
    trl.interpreter(begun := environment(tmp_path / "begun", None))
    assert made == [begun]


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_that_cannot_be_counted_are_refused(rounds, capsys):
    with pytest.raises(SystemExit):
        load("sft").main(["--rounds", rounds])
    assert f"'{rounds}' is no whole number from 1 on" in capsys.readouterr().err


def test_a_side_that_fails_says_why_in_its_own_words(tmp_path):
    (tmp_path / "side.py").write_text("raise SystemExit('it has no heart')")
    with pytest.raises(SystemExit, match=r"^error: side 'align' failed:\nit has no heart$"):
        load("measuring").measure(str(tmp_path / "side.py"), {}, {"align": sys.executable}, 1)
