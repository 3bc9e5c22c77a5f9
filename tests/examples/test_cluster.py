"""The launch files for schedulers: each rendered, linted, and run with stand-ins for the cluster's own programs.

Slurm itself runs slurm.sbatch in examples/cluster/try_slurm.sh, which takes ten minutes (docs/cluster.md has its log).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from align.cli import _parser
from align.recipe.shipped import shipped_recipes
from align.runs.arguments import parse_with_overrides
from align.runs.launcher import accelerate_configs
from tests.commands import ROOT

CLUSTER = ROOT / "examples/cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
DOCKERFILES = sorted(CLUSTER.glob("Dockerfile.*"))

# `align` on a node: says its words, and ends with 75 when it is asked to save, with what END says at once otherwise.
ALIGN = """#!/bin/bash
trap 'exit 75' USR1 TERM
printf '%q ' align "$@" && echo
[[ "$END" == wait ]] || exit "$END"
for _ in $(seq 600); do sleep 0.1; done
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
  "show hostnames") printf 'first\\nsecond\\n' ;;
  "show node") echo "NodeName=$3 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=$3" ;;
  *) echo "scontrol $*" ;;
esac
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
SLURM_NODEID=0 exec "$@"
"""
SSH = """#!/bin/bash
echo "ssh to $4"
exec bash -c "$5"
"""
JOB = {"SLURM_JOB_ID": "12345", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "[first,second]", "SLURM_GPUS_ON_NODE": "8"}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch) -> Path:
    programs = {"align": ALIGN, "scontrol": SCONTROL, "srun": SRUN, "ssh": SSH}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for name in ("ALIGN_CONFIG", "ALIGN_RANKS", "ALIGN_VENV", "ALIGN_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(script: str, *words: str, end: str, send: int | None = None, up: int = 1, **more: str) -> tuple[int, str]:
    """A script's exit code and what it said; `send` is a signal, once `up` nodes have begun."""
    log = Path("log")
    with log.open("w") as file:
        command, environment = ["bash", CLUSTER / script, *words], os.environ | {"END": end} | more
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    until = time.monotonic() + 60
    while send is not None and log.read_text().count("\nalign launch") < up:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    if send is not None:
        time.sleep(0.2)  # for what stands behind the last line
        process.send_signal(send)
    return process.wait(60), log.read_text()


def said_words(said: str) -> list[list[str]]:
    """The words of every `align launch` that was started; each is one that the program itself can read."""
    lines = [shlex.split(line) for line in said.splitlines() if line.startswith("align launch")]
    for line in lines:
        parse_with_overrides(_parser(), line[1:])
        assert line[line.index("--config_file") + 1] in accelerate_configs()
        assert line[line.index("-m") + 1 :][:2] == ["align.cli", "run"]
        parse_with_overrides(_parser(), line[line.index("align.cli") + 1 :])
    return lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_linted(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--severity", "warning", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert not re.search(r"<[A-Z_]+>|/path/to|CHANGE|TODO|your[-_]", text), "a placeholder that fails later"


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_what_is_missing_is_said_at_once(stand_ins, script):
    code, said = run(script, end="0", **JOB)
    assert code != 0 and re.search(r"say which|kubernetes\.sh NAME IMAGE", said), said


def test_slurm_gives_every_node_its_words(stand_ins):
    code, said = run("slurm.sbatch", "my.yaml", "seed=3", end="0", **JOB)
    assert code == 0 and "scontrol requeue" not in said
    (words,) = said_words(said)
    options = dict(zip(words[2:14:2], words[3:14:2], strict=True))
    assert options == {
        "--machine_rank": "0",
        "--config_file": "nodes",
        "--num_machines": "2",
        "--num_processes": "16",
        "--main_process_ip": "10.0.0.7",
        "--main_process_port": "22345",
    }
    assert words[14:] == ["-m", "align.cli", "run", "my.yaml", "seed=3"]
    headers = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", (CLUSTER / "slurm.sbatch").read_text(), re.M))
    assert headers["signal"] == "B:USR1@600" and headers["open-mode"] == "append" and "requeue" in headers


@pytest.mark.parametrize(
    ("end", "send", "code", "queued"),
    [
        ("wait", signal.SIGUSR1, 75, True),
        ("75", None, 75, False),  # preempted or cancelled, whose matter that is
        ("1", None, 1, False),
        ("137", None, 137, False),
    ],
)
def test_slurm_queues_again_what_the_time_limit_stopped(stand_ins, end, send, code, queued):
    ended, said = run("slurm.sbatch", "my.yaml", end=end, send=send, **JOB)
    assert ended == code, said
    assert ("scontrol requeue 12345" in said) == queued


@pytest.mark.parametrize("name", [signal.SIGUSR1, signal.SIGTERM])
def test_ssh_starts_every_machine_and_passes_signals_on(stand_ins, name):
    words = ("first me@second", "my.yaml", "ppo.note=a $b")
    code, said = run("ssh.sh", *words, end="wait", send=name, up=2, ALIGN_RANKS="4")
    assert code == 75, said
    assert said.count("ssh to first") == 2 and said.count("ssh to me@second") == 2  # to start, and to signal
    first, second = sorted(said_words(said), key=lambda line: line[line.index("--machine_rank") + 1])
    assert first[first.index("--machine_rank") + 1] == "0" and second[second.index("--machine_rank") + 1] == "1"
    for line in (first, second):
        assert line[-1] == "ppo.note=a $b" and line[line.index("--main_process_ip") + 1] == "first"
        assert line[line.index("--num_processes") + 1] == "8"
    assert not list(stand_ins.glob(".align-ssh*"))


def test_ssh_ends_with_the_code_of_what_failed(stand_ins):
    assert run("ssh.sh", "first second", "my.yaml", end="1")[0] == 1
    assert run("ssh.sh", "first second", "my.yaml", end="0")[0] == 0


def manifest(*words: str) -> tuple[dict, dict]:
    done = subprocess.run(["bash", CLUSTER / "kubernetes.sh", *words], capture_output=True, text=True, check=True)
    service, job = YAML(typ="safe").load_all(done.stdout)
    return service, job


def test_kubernetes_is_a_job_that_tells_saved_from_failed():
    override = 'ppo.note=a "b" \\c: $HOME #'
    service, job = manifest("chain", "align:cuda", "runs", "4", "8", "my.yaml", override)
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    name = service["metadata"]["name"]
    assert (
        service["spec"]["selector"] == {"job-name": job["metadata"]["name"]} and service["spec"]["clusterIP"] == "None"
    )
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert [rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule] == [[75], [2]]
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {"align"}
    assert pod["restartPolicy"] == "Never", "which podFailurePolicy wants"
    assert pod["subdomain"] == name and pod["terminationGracePeriodSeconds"] == 600
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    words = container["command"] + container["args"]
    assert words[words.index("--main_process_ip") + 1] == "chain-0.chain"
    assert words[words.index("--machine_rank") + 1] == "$(NODE)" and container["env"][0]["name"] == "NODE"
    assert words[words.index("--num_processes") + 1] == "32" and all(isinstance(word, str) for word in words)
    assert words[-4:] == ["align.cli", "run", "my.yaml", override]
    _, on_cpu = manifest("chain", "align:cpu", "runs", "2", "0", "my.yaml")
    args = on_cpu["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--num_processes") + 1] == "2"


def test_kubernetes_refuses_names_and_numbers_that_are_none():
    for words in (
        ("Chain", "i", "c", "1", "1", "r"),
        ("chain", "i", "c", "0", "1", "r"),
        ("chain", "i", "c", "1", "x", "r"),
    ):
        done = subprocess.run(["bash", CLUSTER / "kubernetes.sh", *words], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) of every one, comments left out and continued lines joined."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_keep_the_rules(file):
    found = instructions(file)
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in found} <= known and [name for name, _ in found].count("FROM") == 1
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", found[0][1]), "a version, not latest"
    for name, rest in found:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        if name == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest and "constraints.txt" in rest, "exact versions, and no cache in the image"
        if name == "RUN" and "apt-get" in rest:
            assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest
    user = [rest for name, rest in found if name == "USER"]
    assert user == ["1000"], "by number: Kubernetes knows that it is not root"
    assert ("ENTRYPOINT", '["align"]') in found, "the program is process 1, which gets the signals"
    extras = re.search(r"'\.\[([\w,-]+)\]'", file.read_text()).group(1).split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras)


def test_both_images_hold_the_same_program():
    copied = [{rest for name, rest in instructions(file) if name == "COPY"} for file in DOCKERFILES]
    sources = [{source for rest in one for source in rest.split()[:-1]} for one in copied]
    assert len(sources) == 2 and sources[0] == sources[1] >= {"align", "data_formats", "reward", "rollouts", "recipes"}


def test_configs_of_accelerate_are_no_recipes():
    assert not set(accelerate_configs()) & set(shipped_recipes())
