"""How far it is from the entry script to the policy loss: our frames on the stack, and the files they stand in."""

import traceback

import pytest

from align import ppo
from align.recipe import dump_recipe
from align.trainers.ppo import PPOTrainer
from tests.align.stages.test_ppo import recipe
from tests.commands import ROOT

TO_THE_TRAINER = {
    "main": "align/ppo.py",
    "run_entry": "align/cli.py",
    "run_stage": "align/stages/chain.py",
    "run_ppo": "align/stages/run_ppo.py",
}
FRAMES, FILES = 9, 7  # the seam `policy_loss` itself among them


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """(file, function) of every frame of ours, from `main` of align/ppo.py to where the policy loss is called."""
    found, loss = [], PPOTrainer.policy_loss

    def policy_loss(self, *args, **kwargs):
        frames = traceback.extract_stack()[:-1]
        files = [frame.filename.removeprefix(f"{ROOT}/") for frame in frames]
        ours = [(file, frame.name) for file, frame in zip(files, frames, strict=True) if file.startswith("align/")]
        found.extend([*ours, (loss.__code__.co_filename.removeprefix(f"{ROOT}/"), "policy_loss")])
        raise SystemExit

    monkeypatch.setattr(PPOTrainer, "policy_loss", policy_loss)
    file = tmp_path / "r.yaml"
    file.write_text(dump_recipe(recipe(tmp_path, eval_data=[], critic_warmup_steps=0)))
    with pytest.raises(SystemExit):
        ppo.main([str(file)])
    return found


def test_from_the_entry_to_the_loss(stack):
    assert {name: file for file, name in stack[:4]} == TO_THE_TRAINER
    assert stack[4][1] == "train"
    assert len(stack) <= FRAMES and len({file for file, _ in stack}) <= FILES, stack
