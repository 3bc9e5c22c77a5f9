"""The oracles must be independent: expected values from the code under test would prove nothing."""

import ast
import math
import sys
from pathlib import Path

import pytest

from tests import oracles

SOURCE = Path(__file__).with_name("oracles.py")


def test_the_oracles_import_the_standard_library_alone():
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Name):
            assert node.id not in {"__import__", "exec", "eval", "compile"}
    assert imported == {"__future__", "math"}
    assert imported <= sys.stdlib_module_names


def test_the_oracles_agree_with_numbers_by_hand():
    assert oracles.log_softmax([0.0, math.log(3)]) == pytest.approx([math.log(0.25), math.log(0.75)])
    assert oracles.population_variance([1.0, 2.0, 3.0, 10.0]) == 12.5
    assert oracles.kl(math.log(0.5), math.log(0.25), "k3") == pytest.approx(math.log(2) - 0.5)
    advantages, returns = oracles.gae([[0, 0, 1]], [[2, 1, 0.5]], [[1, 1, 1]], 0.5, 0.5)
    assert advantages == [[-1.65625, -0.625, 0.5]] and returns == [[0.34375, 0.375, 1.0]]
    assert oracles.shape_rewards([3.0], [[0.5, -0.25, 9.0]], [[1, 1, 0]], 0.5) == [[-0.25, 3.125, 0.0]]
    assert oracles.policy_loss([[math.log(2)]], [[0.0]], [[1.0]], [[1]], 0.2)[0] == -1.2
    assert oracles.value_loss([[1.0]], [[0.0]], [[2.0]], [[1]], 0.5)[0] == 1.125
