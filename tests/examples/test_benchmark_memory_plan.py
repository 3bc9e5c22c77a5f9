"""examples/benchmark_memory_plan.py runs; on a GPU the plan is within 15 % of what is measured."""

import re
import sys

import pytest

from examples import benchmark_memory_plan

LINE = re.compile(r"^(\S+) +(?:\S+ )?\S+ +([\d.]+) +([\d.]+) +([\d.]+) +([+-][\d.]+)% +\d+ s  (\w+: .*)$", re.MULTILINE)


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    """`measured(case)`: the figures by case, and what is printed; every case in processes of its own."""
    monkeypatch.chdir(tmp_path)

    def run(case):
        monkeypatch.setattr(sys, "argv", ["benchmark_memory_plan.py", case])
        benchmark_memory_plan.main()
        printed = capsys.readouterr().out
        return {found[1]: found for found in LINE.finditer(printed)}, printed

    return run


@pytest.mark.slow  # two processes
@pytest.mark.needs("bitsandbytes")
def test_a_tiny_case_is_planned_and_measured(measured, tmp_path):
    found, printed = measured("tiny")
    assert printed.splitlines()[0].split()[:3] == ["case", "shape", "planned"]
    assert found["tiny"][6] == "model: backward pass begins" and float(found["tiny"][3]) < 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("case", ["sft-none-0.5B", "sft-lora-1.5B", "rm-none-0.5B", "ppo-none-0.5B", "sft-qlora-7B"])
def test_the_plan_holds_on_a_gpu(case, measured):
    found, printed = measured(case)
    assert case in found, printed
    assert abs(float(found[case][5])) <= 15
