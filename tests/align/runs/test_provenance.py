import re
import shlex
import subprocess
from importlib import metadata

from align.runs import provenance
from align.runs.launch import command, guarded
from align.stages import common


def test_a_finished_stage_says_what_it_was_made_with(tmp_path):
    typed = shlex.join(["align", "run", "my recipe.yaml", "ppo.reward.url=https://me:secret@host/x?key=k3ys"])
    with guarded(proceed=typed):
        common.finish(tmp_path, {"steps": 3}, began=0.0)
    made = common.read_summary(tmp_path)["made_with"]
    assert (made["torch"], made["transformers"]) == (metadata.version("torch"), metadata.version("transformers"))
    assert made["processes"] == 1 and re.match(r"CPU \(\S+\), \d+ cores$|\d+ × ", made["hardware"])
    assert made["command"].startswith("align run 'my recipe.yaml'") and "host" in made["command"]
    assert "secret" not in made["command"] and "k3ys" not in made["command"]
    assert command() == ""  # what is called from Python has none
    assert "command" not in provenance.provenance()


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    assert re.fullmatch(r"([0-9a-f]{12}(-dirty)?)?", provenance.commit())
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.commit.cache_clear()
    assert provenance.commit() == ""
    options = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], [*options, "commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    provenance.commit.cache_clear()
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert provenance.commit() == head[:12]
    provenance.commit.cache_clear()
