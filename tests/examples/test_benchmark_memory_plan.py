"""The benchmark of the memory plan runs; on a GPU the plan is within 15 % of what is measured."""

import re
import sys

import pytest

from tests.commands import INSTALLED, ROOT, run

LINE = re.compile(r"^(\S+) +(?:\S+ )?\S+ +([\d.]+) +([\d.]+) +([\d.]+) +([+-][\d.]+)% +\d+ s  (\w+: .*)$", re.MULTILINE)


def measured(tmp_path, *cases):
    done = run(sys.executable, ROOT / "examples/benchmark_memory_plan.py", *cases, cwd=tmp_path, env=INSTALLED)
    return {found[1]: found for found in LINE.finditer(done.stdout)}, done


@pytest.mark.slow  # two processes
@pytest.mark.needs("bitsandbytes")
def test_a_tiny_case_is_planned_and_measured(tmp_path):
    found, done = measured(tmp_path, "tiny")
    assert done.returncode == 0 and done.stdout.splitlines()[0].split()[:3] == ["case", "shape", "planned"]
    assert found["tiny"][6] == "model: backward pass begins" and float(found["tiny"][3]) < 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("case", ["sft-none-0.5B", "sft-lora-1.5B", "rm-none-0.5B", "ppo-none-0.5B", "sft-qlora-7B"])
def test_the_plan_holds_on_a_gpu(case, tmp_path):
    found, done = measured(tmp_path, case)
    assert case in found, done.stdout
    assert abs(float(found[case][5])) <= 15
