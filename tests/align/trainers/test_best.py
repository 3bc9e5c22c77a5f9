"""`evaluation.save_best`: the policy of the best look is kept, and a resumed run keeps the same one."""

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from align.trainers.ppo import PPOTrainer
from data_formats.errors import EmptyDatasetError
from tests.align.trainers import ppo_case


class Scripted(PPOTrainer):
    """Looks that find what they are told, and weights of the policy at each."""

    script = (1.0, 3.0, 3.0, 2.0, 2.5)

    def evaluate(self, prompts=None, num_samples=1):
        step = self.state.global_step
        self.seen = getattr(self, "seen", {}) | {step: [p.detach().clone() for p in self.policy.parameters]}
        gold = {"eval/gold": float(step)}  # rises all the time, and chooses nothing
        return super().evaluate(prompts, num_samples) | {"eval/score": self.script[step]} | gold


def make(folder, **options):
    defaults = {"num_iterations": 4, "save_steps": 1, "save_total_limit": 9, "eval_prompts": ppo_case.prompts(2)}
    defaults["eval_data"] = ({"path": "unused"},)
    evaluation = {"every_steps": 1, "save_best": True}
    return ppo_case.trainer(folder, **{"kind": Scripted, "evaluation": evaluation} | defaults | options)


def kept(folder):
    return list(AutoModelForCausalLM.from_pretrained(folder / "best" / "model").parameters())


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


SCRIPTS = [(Scripted.script, 1)]
SCRIPTS += [pytest.param(*one, marks=pytest.mark.slow) for one in (((4.0, 3.0, 3.0, 2.0, 4.0), 0), (range(5), 4))]


@pytest.mark.parametrize(("script", "best"), SCRIPTS)
def test_the_policy_of_the_earliest_best_look_is_kept(tmp_path, script, best):
    trainer = make(tmp_path)
    trainer.script = script
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (script[best], best)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "best" / "model")
    assert equal(kept(tmp_path), trainer.seen[best]) and not equal(kept(tmp_path), trainer.seen[(best + 1) % 5])
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["model"]
    assert (tmp_path / "best/model/tokenizer.json").is_file()


def test_by_default_nothing_is_kept(tmp_path):
    trainer = make(tmp_path, evaluation={"every_steps": 1})
    trainer.train()
    assert trainer.state.best_metric is None and not (tmp_path / "best").exists()


def test_the_highest_score_of_real_looks_wins(tmp_path):
    trainer = make(tmp_path, kind=PPOTrainer)
    trainer.train()
    scores = {line["step"]: line["eval/score"] for line in trainer.state.log_history if "eval/score" in line}
    assert list(scores) == [0, 1, 2, 3, 4] and len(set(scores.values())) > 1
    assert trainer.state.best_metric == max(scores.values())
    assert scores[trainer.state.best_global_step] == trainer.state.best_metric


@pytest.mark.slow
def test_a_resumed_run_agrees(tmp_path):
    class Crash(TrainerCallback):
        def __init__(self, stop_after):
            self.stop_after = stop_after

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.stop_after + 1:
                raise InterruptedError("between the checkpoint and the end of the next iteration")

    class Later(Scripted):
        script = (1.0, 0.5, 3.0, 3.0, 2.0)

    whole = make(tmp_path / "whole", kind=Later)
    whole.train()
    assert (whole.state.best_metric, whole.state.best_global_step) == (3.0, 2)
    for stop_after in (1, 0, 2):  # at the best look (of step 2), before it, and after
        folder = tmp_path / str(stop_after)
        with pytest.raises(InterruptedError):
            make(folder, kind=Later, callbacks=[Crash(stop_after)]).train()
        again = make(folder, kind=Later)
        again.train(resume_from_checkpoint=True)
        assert (again.state.best_metric, again.state.best_global_step) == (3.0, 2)
        assert again.state.best_model_checkpoint == str(folder / "best/model")
        assert equal(kept(folder), kept(tmp_path / "whole"))


@pytest.mark.slow
def test_a_resume_from_before_the_best_look_comes_to_it_again(tmp_path):
    first = make(tmp_path)
    first.train()
    weights = kept(tmp_path)
    second = make(tmp_path)
    second.load_checkpoint(tmp_path / "checkpoints" / "step-3")
    assert (second.state.best_metric, second.state.best_global_step) == (3.0, 1)
    third = make(tmp_path, save_steps=None)
    third.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    assert third.state.best_global_step == 1 and equal(kept(tmp_path), weights)


def test_without_held_out_prompts_there_is_nothing_to_choose_by(tmp_path):
    with pytest.raises(EmptyDatasetError, match=r"evaluation\.save_best: there are no held-out prompts"):
        make(tmp_path, eval_prompts=())
