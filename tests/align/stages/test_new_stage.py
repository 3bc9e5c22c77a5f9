"""What a new stage touches: in a copy of the packages these files are written, and nothing else, and it is a stage."""

import json
import re
import shutil
import subprocess
import sys
from subprocess import PIPE, STDOUT

import pytest

from tests.align.stages.small_chain import write_data
from tests.commands import PLAIN, ROOT
from tests.tiny_models import save_causal_lm

pytestmark = pytest.mark.slow  # everything is imported anew
SECTION = '''"""The `toy` section."""

from align.recipe.section import Rate
from align.recipe.supervised_sections import SupervisedSection


class ToySection(SupervisedSection):
    """Comparisons, and how far the policy may go from where it starts."""

    beta: Rate = 0.1
'''
STAGE = '''"""A stage that trains nothing."""

import json
import time

from align.recipe.lineage import init_origin, stage_dir
from align.stages import common


def run_toy(recipe, stage):
    began, folder = time.perf_counter(), stage_dir(recipe, stage)
    common.open_folder(recipe, folder)
    start = common.origin_path(recipe, init_origin(recipe, stage), stage=stage)
    common.write_lines(folder / "metrics.jsonl", [{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
    common.write_lines(folder / "samples.jsonl", [{"prompt": "a", "reply": "b"}])
    return common.finish(folder, {"started_from": start, "headline": [["beta", None, recipe.toy.beta]]}, began)


def evaluate_toy(recipe, stage, summary):
    return {"evaluated": summary["started_from"], "headline": [["evaluated", None, 1]]}
'''
RECORD = """    Stage(
        name="toy",
        section=ToySection,
        records="Comparison",
        run="align.stages.run_toy:run_toy",
        parents=("rejection", "sft"),
        evaluate=("align.stages.run_toy:evaluate_toy",),
    ),
"""
RECIPE = """name: toys
output_dir: run
model: {path: model}
toy: {data: [comparisons.jsonl], max_length: 64, batch_size: 4, micro_batch_size: 2, learning_rate: 1.e-4}
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the packages with the stage in it."""
    root = tmp_path_factory.mktemp("house")
    for package in ("align", "data_formats", "reward", "rollouts", "recipes"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "align/recipe/toy.py").write_text(SECTION)
    (root / "align/stages/run_toy.py").write_text(STAGE)
    (root / "align/toy.py").write_text((ROOT / "align/sft.py").read_text().replace("sft", "toy"))
    (root / "recipes/toy.yaml").write_text(RECIPE)
    registry = root / "align/recipe/registry.py"
    text = registry.read_text()
    text = text.replace("\n\n@dataclass", "\nfrom align.recipe.toy import ToySection\n\n\n@dataclass", 1)
    registry.write_text(text.replace("\n)\n\nSTAGES = ", f"\n{RECORD})\n\nSTAGES = "))
    write_data(root)
    save_causal_lm(root / "model")
    return root


COMMANDS = (
    "check toy toy.beta=0.5",
    "check toy toy.betta=1",
    "plan toy",
    "--help",
    "run toy toy.beta=0.5",
    "align/toy.py toy toy.beta=0.25",
)
SAY = """
import runpy, sys
from align.cli import main
for command in sys.argv[1:]:
    words, code = command.split(), 0
    try:
        if words[0].endswith(".py"):
            sys.argv[:] = words
            runpy.run_path(words[0], run_name="__main__")
        else:
            code = main(words)
    except SystemExit as end:
        code = end.code or 0
    print("ended with", code, flush=True)
"""


@pytest.fixture(scope="module")
def said(house):
    """What each of COMMANDS printed, one after the other in one process, and how it ended."""
    words = [sys.executable, "-u", "-c", SAY, *COMMANDS]
    done = subprocess.run(
        words, cwd=house, env=PLAIN | {"PYTHONPATH": str(house)}, stdout=PIPE, stderr=STDOUT, text=True, timeout=240
    )
    parts = re.split(r"ended with (\d+)\n", done.stdout)
    assert len(parts) == 2 * len(COMMANDS) + 1, done.stdout
    return dict(zip(COMMANDS, zip(parts[::2], map(int, parts[1::2]), strict=False), strict=True))


def test_a_stage_is_checked_planned_and_known(said):
    shown, code = said["check toy toy.beta=0.5"]
    assert code == 0 and "toy    model        comparisons.jsonl  run/toy/" in shown
    shown, code = said["check toy toy.betta=1"]
    assert code == 1 and "toy.betta: unknown key; did you mean 'beta'?" in shown
    shown, code = said["plan toy"]
    assert code == 0 and "toy" in shown
    assert "base, sft, rm, rejection, dpo, ppo or toy" in said["--help"][0].replace("\n", " ")


def test_a_stage_is_run_shown_and_started_by_itself(house, said):
    shown, code = said["run toy toy.beta=0.5"]
    assert code == 0 and "beta" in shown and "0.5" in shown and "evaluated" in shown
    summary = json.loads((house / "run/toy/summary.json").read_text())
    assert summary["started_from"] == summary["evaluated"] == "model"
    page = (house / "run/report/index.html").read_text()
    assert "Samples of toy" in page and ">beta<" in page and "toy: loss" in page
    shown, code = said["align/toy.py toy toy.beta=0.25"]
    assert code == 0 and "toy: starts anew (toy.beta was 0.5, is 0.25)" in shown
    assert json.loads((house / "run/toy/summary.json").read_text())["headline"][0] == ["beta", None, 0.25]
