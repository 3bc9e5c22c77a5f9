import ast
from pathlib import Path

import pytest
import torch

from tests.align.trainers import ppo_case, ppo_reference

LENGTHS = (5, 1, 7, 3, 2, 6, 4, 7)
FINISHED = (True, True, False, True, True, True, False, True)
BLOCKS = [[3, 8, 200, 17, 4], [9, 256, 11], [40, 41, 42, 43, 44, 45, 46], [5, 6]]


def exact_trainer(folder, **options):
    trainer = ppo_case.trainer(
        folder,
        kind=ppo_case.Recorder,
        policy_model=ppo_case.exact(ppo_case.policy(0)),
        reference=ppo_case.exact(ppo_case.policy(5)),
        critic_model=ppo_case.ExactCritic(1),
        reward=ppo_case.length_score,
        rollout={"temperature": 0.7},
        **options,
    )
    trainer.given = [ppo_case.samples(LENGTHS, finished=FINISHED, seed=seed) for seed in range(3)]
    return trainer


def test_reference_imports_nothing_of_ours():
    tree = ast.parse((Path(__file__).parent / "ppo_reference.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "dataclasses", "math", "torch"}


@pytest.mark.parametrize(
    ("num_mini_batches", "micro_batch_size", "epochs", "ptx_coef"),
    [(1, 8, 1, 0.0), (1, 3, 1, 0.0), (2, 4, 2, 0.0), (2, 1, 1, 0.3), (4, 2, 1, 0.3), (2, 3, 2, 1.5)],
)
def test_gradients_of_every_optimizer_step(tmp_path, num_mini_batches, micro_batch_size, epochs, ptx_coef):
    trainer = exact_trainer(
        tmp_path,
        num_mini_batches=num_mini_batches,
        micro_batch_size=micro_batch_size,
        num_ppo_epochs=epochs,
        num_iterations=2,
        ptx_coef=ptx_coef,
        ptx_ratio=1,
        ptx_micro_batch_size=2,
        ptx_blocks=BLOCKS if ptx_coef else (),
    )
    drawn = []
    if ptx_coef:
        draw = trainer.ptx.sampler.next

        def noted():
            drawn.append([BLOCKS[index] for index in draw()])
            return [BLOCKS.index(block) for block in drawn[-1]]

        trainer.ptx.sampler.next = noted
    plans = []
    trainer.minibatches = lambda tokens, epoch: (
        plans.append(type(trainer).minibatches(trainer, tokens, epoch)) or plans[-1]
    )
    trainer.train()

    settings = ppo_reference.Settings(temperature=0.7, ptx_coef=ptx_coef)
    policy, critic = ppo_case.exact(ppo_case.policy(9)), ppo_case.ExactCritic(9)
    reference = ppo_case.exact(ppo_case.policy(5))
    running, steps, blocks = [0, 0.0], iter(trainer.steps), iter(drawn)
    per_iteration = 1 + epochs  # the pass for old log-probabilities asks for the first epoch's plan too
    for iteration in range(2):
        epoch_plans = plans[iteration * per_iteration + 1 : (iteration + 1) * per_iteration]
        made = None
        for rows, _ in (minibatch for plan in epoch_plans for minibatch in plan):
            before, found = next(steps)
            for model, name in ((policy, "policy"), (critic, "value")):
                for parameter, value in zip(model.parameters(), before[name], strict=True):
                    parameter.data.copy_(value)
            if made is None:
                given = trainer.given[iteration]
                scores = ppo_case.length_score(None, given.replies)
                made = ppo_reference.experience(
                    policy,
                    critic,
                    reference,
                    given.prompt_ids,
                    given.reply_ids,
                    given.finished,
                    scores,
                    running,
                    settings,
                )
            minibatch = [made[row] for row in rows.tolist()]
            ptx = next(blocks) if ptx_coef else ()
            expected = ppo_reference.policy_gradient(policy, minibatch, settings, ptx)
            assert ppo_reference.largest_relative_error(found["policy"], expected) < 1e-9
            expected = ppo_reference.critic_gradient(critic, minibatch, settings)
            assert ppo_reference.largest_relative_error(found["value"], expected) < 1e-9
    assert next(steps, None) is None
    assert sorted(row for rows, _ in plans[0] for row in rows.tolist()) == list(range(8))


def test_micro_batches_do_not_change_what_is_learnt(tmp_path):
    weights = []
    for micro in (1, 3, 8):
        trainer = exact_trainer(tmp_path / str(micro), micro_batch_size=micro, num_mini_batches=1, num_iterations=3)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters]))
    start = torch.cat([p.detach().flatten() for p in ppo_case.exact(ppo_case.policy(0)).parameters()])
    assert (weights[0] - start).abs().max() > 1e-2
    assert (weights[1] - weights[0]).abs().max() < 1e-8
    assert (weights[2] - weights[0]).abs().max() < 1e-8


def test_garbage_at_padded_positions_changes_nothing(tmp_path):
    def run(folder, spoil):
        trainer = exact_trainer(folder, num_mini_batches=1, micro_batch_size=3)
        made = trainer.make_experience(trainer.given[0], trainer.score(trainer.given[0]).total_N)[0]
        if spoil:
            padded = torch.arange(made.tokens.input_ids_NT.shape[1])[None] >= made.tokens.lengths_N[:, None]
            made.tokens.input_ids_NT[padded] = 123
            for name in ("old_logps_NS", "old_values_NS", "advantages_NS", "returns_NS"):
                getattr(made, name)[~made.mask_NS] = float("nan")
        metrics = trainer.update(made)
        return torch.cat([p.detach().flatten() for p in trainer.policy.parameters + trainer.critic.parameters]), metrics

    clean, clean_metrics = run(tmp_path / "a", False)
    spoilt, spoilt_metrics = run(tmp_path / "b", True)
    assert torch.equal(clean, spoilt)
    assert clean_metrics == spoilt_metrics
