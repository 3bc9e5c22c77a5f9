"""Sampling the next batch while this one is trained on: the replies, the weights, the log, faults and checkpoints."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.trainers import engines
from align.trainers.ppo import checkpoint
from reward.protocol import RewardError
from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from tests.align.trainers import overlap_case, ppo_case
from tests.align.trainers.overlap_case import (
    Behind,
    OwnWeights,
    TwoBehind,
    Watched,
    assert_same,
    batches,
    make,
    metrics,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("whole"))
    torch.manual_seed(3)
    trainer.train()
    return trainer


def test_replies_are_those_of_the_weights_an_iteration_before(whole):
    order = batches(whole, 5)
    for iteration, samples in whole.collected.items():
        engine = HFEngine(whole.weights[max(0, iteration - 1)], pad_token_id=0)
        rollout = whole.config.rollout
        params = replace(whole.sampling_params(), seed=derive(0, "rollout", iteration, 0))
        ids = [samples.prompt_ids[row] for row in range(0, len(samples), rollout.num_generations)]
        expected = engine.generate([list(one) for one in ids], params)
        assert samples.reply_ids == tuple(one.token_ids for one in expected)
        assert [samples.prompts[row] for row in range(0, len(samples), 2)] == order[iteration]
        if iteration > 1:  # the newest weights say something else
            newest = HFEngine(whole.weights[iteration], pad_token_id=0).generate([list(one) for one in ids], params)
            assert samples.reply_ids != tuple(one.token_ids for one in newest)
    assert whole.engine.threads == [True, False, False, False, False]  # only the first batch by the main thread


def test_it_learns_what_an_engine_that_is_one_push_behind_teaches(tmp_path, whole):
    behind = make(tmp_path / "behind", Behind, rollout={"overlap": False})
    torch.manual_seed(3)
    behind.train()
    assert_same(whole, behind)


@pytest.mark.slow
def test_staleness_counts_the_policys_optimizer_steps(tmp_path, whole):
    assert [line["engine/staleness"] for line in metrics(whole)] == [0.0, 2.0, 2.0, 2.0, 2.0]
    warm = make(tmp_path / "warm", critic_warmup_steps=3)  # two steps an iteration: the policy's first is the fourth
    warm.train()
    assert [line["engine/staleness"] for line in metrics(warm)] == [0.0, 0.0, 1.0, 2.0, 2.0]
    for engine in (OwnWeights(ppo_case.policy()), None):
        fresh = ppo_case.trainer(tmp_path / "fresh", engine=engine)
        fresh.train()
        assert [line["engine/staleness"] for line in metrics(fresh)] == [0.0, 0.0]
    assert all("seconds/wait" in line for line in whole.state.log_history)
    assert not any("seconds/wait" in line for line in fresh.state.log_history)


@pytest.mark.slow
def test_importance_weights_are_the_ratio_of_the_two_iterations(tmp_path):
    """min(cap, policy when the iteration began / policy an iteration before), a token, at temperature 0.8."""

    class Noting(Watched):
        def policy_loss(self, logps_BS, batch):
            self.__dict__.setdefault("seen", []).append((self.state.global_step, batch))
            return super().policy_loss(logps_BS, batch)

    trainer = make(tmp_path, kind=Noting, importance_sampling_cap=1.05, policy={"learning_rate": 3e-2})
    trainer.train()
    found = {"apart": 0, "capped": 0}
    for iteration, batch in trainer.seen:
        now, then = (trainer.weights[max(0, at)] for at in (iteration, iteration - 1))
        new, old = (token_logps(model, batch.tokens.input_ids_NT, 0.8) for model in (now, then))
        expected = (new - old).exp().clamp(max=1.05)[batch.mask_NS]
        assert torch.allclose(batch.importance_NS[batch.mask_NS].double(), expected, atol=2e-4)
        found["apart"] += int((expected - 1).abs().gt(0.01).sum())
        found["capped"] += int((expected == 1.05).sum())
    assert found["apart"] > 50 and found["capped"] > 10


def token_logps(model, ids_NT, temperature):
    """(N, T - 1) float64, of every token given those before it."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(ids_NT).logits[:, :-1] / temperature
    return torch.log_softmax(logits, -1).gather(-1, ids_NT[:, 1:, None]).squeeze(-1)


def test_the_engine_samples_while_the_policy_trains(tmp_path):
    """It is held until the first loss is computed: a trainer that waited for it before would never get there."""
    training = threading.Event()

    class Held(OwnWeights):
        def generate(self, prompts, params):
            if threading.current_thread() is not threading.main_thread():
                assert training.wait(timeout=60)
            return super().generate(prompts, params)

    class Telling(Watched):
        def policy_loss(self, logps_BS, batch):
            training.set()
            return super().policy_loss(logps_BS, batch)

    trainer = make(tmp_path, Held, kind=Telling, num_iterations=2)
    trainer.train()
    assert training.is_set() and trainer.engine.threads == [True, False]


class Crash(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError("between the checkpoint and the end of the next iteration")


class Stop(Crash):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_save = state.global_step == self.step


@pytest.mark.parametrize(
    ("kind", "step"), [(Stop, 2), *(pytest.param(Crash, step, marks=pytest.mark.slow) for step in (2, 3, 5))]
)
def test_resumed_equals_never_stopped(tmp_path, whole, kind, step):
    first = make(tmp_path, callbacks=[kind(step)])
    torch.manual_seed(3)
    if kind is Crash:
        with pytest.raises(InterruptedError):
            first.train()
    else:
        first.train()
    second = make(tmp_path)
    torch.manual_seed(999)
    assert second.train(resume_from_checkpoint=True).global_step == 5
    assert_same(second, whole)
    assert not any(second.engine.threads)  # what was sampled ahead is taken up, not sampled again


def test_a_checkpoint_holds_the_finished_batch_as_plain_values(whole):
    folder = whole.checkpoint_dir
    held = [
        torch.load(folder / f"step-{step}" / checkpoint.STATE_FILE, weights_only=True)["ahead"] for step in range(1, 6)
    ]
    assert held[-1] == [[]]  # nothing comes after the last iteration
    for iteration, ((batch,),) in enumerate(held[:-1], start=1):
        samples = whole.collected[iteration]
        assert [whole.prompts[index] for index in batch["indexes"]] == batches(whole, 5)[iteration]
        assert batch["completions"]["token_ids"] == list(samples.reply_ids)
        assert set(batch["completions"]["weight_version"]) == {2 * (iteration - 1)}
        assert batch["params"]["seed"] == derive(0, "rollout", iteration, 0)


@pytest.mark.slow
def test_a_run_that_goes_on_without_overlap_keeps_the_order_of_the_prompts(tmp_path, whole):
    first = make(tmp_path, callbacks=[Crash(3)])
    with pytest.raises(InterruptedError):
        first.train()
    second = make(tmp_path, rollout={"overlap": False})
    second.train(resume_from_checkpoint=True)
    assert asked(second) == {iteration: batches(whole, 5)[iteration] for iteration in (2, 3, 4)}
    assert [line["engine/staleness"] for line in metrics(second)][2:] == [0.0, 0.0, 0.0]
    third = make(tmp_path / "on", rollout={"overlap": False}, num_iterations=2)
    third.train()
    fourth = make(tmp_path / "on")
    fourth.train(resume_from_checkpoint=True)
    assert asked(fourth) == asked(second)
    assert [line["engine/staleness"] for line in metrics(fourth)][2:] == [0.0, 2.0, 2.0]


def asked(trainer):
    return {iteration: list(samples.prompts[::2]) for iteration, samples in trainer.collected.items()}


def stopped_by_its_reward(folder, **options):
    """A run whose reward gives no verdict in iteration 3."""
    calls = []

    def failing(prompts, completions):
        calls.append(completions)
        if len(calls) == 3:
            raise RewardError("no verdict")
        return overlap_case.noisy(prompts, completions)

    first = make(folder, reward=failing, save_steps=None, **options)
    torch.manual_seed(3)
    with pytest.raises(TrainingError, match=r"no verdict \(iteration 3\); the state before it is saved in .*step-2"):
        first.train()


def test_a_reward_that_fails_loses_no_batch(tmp_path, whole):
    stopped_by_its_reward(tmp_path)
    second = make(tmp_path)
    torch.manual_seed(999)
    second.train(resume_from_checkpoint=True)
    assert_same(second, whole)


class Failing(OwnWeights):
    """Gives up once, at its `at`-th call."""

    at = 3

    def generate(self, prompts, params):
        completions = super().generate(prompts, params)
        if len(self.threads) == self.at:
            raise RolloutError("the server is gone")
        return completions


@pytest.mark.slow
def test_an_engine_that_fails_meanwhile_stops_the_next_iteration(tmp_path, whole):
    """Batch 3 fails while iteration 2 trains: that one ends, its checkpoint is whole, and no prompt is lost."""
    first = make(tmp_path, Failing, save_steps=None)
    torch.manual_seed(3)
    with pytest.raises(TrainingError, match=r"the server is gone \(iteration 3\); the state before .*step-2"):
        first.train()
    assert first.state.global_step == 2 and [line["step"] for line in first.state.log_history] == [1, 2]
    state = torch.load(first.checkpoint_dir / "step-2" / checkpoint.STATE_FILE, weights_only=True)
    assert state["ahead"] == [[]]
    second = make(tmp_path)
    second.train(resume_from_checkpoint=True)
    order = batches(whole, 5)
    assert asked(first) | asked(second) == dict(enumerate(order))
    assert [line["engine/staleness"] for line in metrics(second)] == [0.0, 2.0, 0.0, 2.0, 2.0]
    pairs = zip(second.weights[2].parameters(), whole.weights[2].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_evaluation_tells_of_the_engine_that_failed_before_it_asks_it(tmp_path):
    trainer = make(tmp_path, Failing, eval_prompts=ppo_case.prompts(2), evaluation={"every_steps": 1})
    trainer.engine.at = 4  # after two calls of the look before training, and the first batch
    with pytest.raises(TrainingError, match=r"^the server is gone; the state is saved in .*step-1"):
        trainer.train()
    assert trainer.state.global_step == 1 and len(trainer.engine.threads) == 4


@pytest.mark.slow
def test_looks_in_between_change_nothing(tmp_path, whole):
    looked = make(tmp_path, eval_prompts=ppo_case.prompts(2), evaluation={"every_steps": 1})
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looked, "reward", type("Silent", (), {"name": "noisy", "score": staticmethod(quiet)})())
        looked.train()
    lines = [line for line in metrics(looked) if "score/mean" in line]
    assert [line["engine/staleness"] for line in lines] == [0.0, 2.0, 2.0, 2.0, 2.0]
    assert len([line for line in metrics(looked) if "eval/score" in line]) == 6
    assert looked.collected[1].reply_ids == whole.collected[1].reply_ids  # both of the first weights


def quiet(samples):
    return [float(len(sample.completion)) for sample in samples]


def test_a_subclass_schedules_its_sampling_by_the_iteration(tmp_path):
    class Cooling(Watched):
        def sampling_params(self):
            return replace(super().sampling_params(), temperature=1.0 - 0.1 * self.state.global_step)

    trainer = make(tmp_path, kind=Cooling, num_iterations=3)
    trainer.train()
    assert [params.temperature for params in trainer.engine.asked] == [1.0, 0.9, 0.8]


@pytest.mark.slow
def test_a_function_set_on_the_trainer_rules_what_is_sampled_meanwhile(tmp_path):
    trainer = make(tmp_path, num_iterations=3)
    usual = trainer.sampling_params
    trainer.sampling_params = lambda: replace(usual(), temperature=0.5)
    trainer.train()
    assert trainer.engine.threads == [True, False, False]
    assert [params.temperature for params in trainer.engine.asked] == [0.5] * 3
    assert len({params.seed for params in trainer.engine.asked}) == 3


@pytest.mark.slow
def test_a_subclass_that_samples_otherwise_gets_the_newest_weights_and_is_told(tmp_path, caplog):
    class Shorter(Watched):
        def collect(self, prompts, params=None):
            params = replace(params or self.sampling_params(), max_new_tokens=3)
            return super().collect(prompts, params)

    trainer = make(tmp_path, kind=Shorter, num_iterations=3)
    trainer.train()
    assert [line["engine/staleness"] for line in metrics(trainer)] == [0.0, 0.0, 0.0]
    assert all(line["length/max"] <= 3 for line in metrics(trainer))
    assert caplog.text.count("did not take the replies that were sampled ahead") == 1


class Slow(OwnWeights):
    """Begins a batch only when the update of an iteration is under way, so that pushes must wait for the engine."""

    gate = threading.Semaphore(0)

    def generate(self, prompts, params):
        if threading.current_thread() is not threading.main_thread():
            assert self.gate.acquire(timeout=60)
        return super().generate(prompts, params)


class Paced(Watched):
    """Lets the engine go on, a batch an iteration, when the update begins."""

    def update(self, experience):
        self.engine.gate.release()
        return super().update(experience)


@pytest.fixture(scope="module")
def two_ahead(tmp_path_factory):
    trainer = make(
        tmp_path_factory.mktemp("two"), kind=Paced, made_engine=slow(), rollout={"overlap": 2}, save_steps=None
    )
    held, kept = trainer.weight_sync.held, []
    trainer.weight_sync.held = lambda version: kept.append(version) or held(version)
    torch.manual_seed(3)
    trainer.train()
    return trainer, kept


def slow():
    policy = ppo_case.policy()
    engine = Slow(policy)
    engine.gate = threading.Semaphore(0)
    return engine


def test_two_ahead_learns_what_an_engine_that_is_two_pushes_behind_teaches(tmp_path, two_ahead):
    trainer, kept = two_ahead
    assert [line["engine/staleness"] for line in metrics(trainer)] == [0.0, 2.0, 4.0, 4.0, 4.0]
    assert kept == [2, 4]  # batches 3 and 4 wait behind one that is sampled, and take their weights along
    behind = make(tmp_path, TwoBehind, rollout={"overlap": 0}, save_steps=None)
    torch.manual_seed(3)
    behind.train()
    assert_same(trainer, behind)


@pytest.mark.parametrize(("kind", "step"), [(Stop, 2), pytest.param(Crash, 3, marks=pytest.mark.slow)])
def test_two_ahead_resumed_equals_never_stopped(tmp_path, two_ahead, kind, step):
    first = make(tmp_path, callbacks=[kind(step)], rollout={"overlap": 2}, save_steps=2)
    torch.manual_seed(3)
    if kind is Crash:
        step = 2  # the newest checkpoint
        with pytest.raises(InterruptedError):
            first.train()
    else:
        first.train()
    (ahead,) = torch.load(first.checkpoint_dir / f"step-{step}" / checkpoint.STATE_FILE, weights_only=True)["ahead"]
    assert [set(batch["completions"]["weight_version"]) for batch in ahead] == [{2 * (step - 2)}, {2 * (step - 1)}]
    second = make(tmp_path, rollout={"overlap": 2}, save_steps=None)
    torch.manual_seed(999)
    second.train(resume_from_checkpoint=True)
    assert_same(second, two_ahead[0])


def test_two_ahead_a_reward_that_fails_loses_no_batch(tmp_path, two_ahead):
    stopped_by_its_reward(tmp_path, rollout={"overlap": 2})
    second = make(tmp_path, rollout={"overlap": 2}, save_steps=None)
    second.train(resume_from_checkpoint=True)
    assert_same(second, two_ahead[0])


@pytest.mark.slow
def test_two_ahead_an_engine_that_fails_stops_the_iteration_that_needs_the_batch(tmp_path):
    first = make(tmp_path, Failing, rollout={"overlap": 2}, save_steps=None)
    with pytest.raises(TrainingError, match=r"the server is gone \(iteration 3\); the state before .*step-2"):
        first.train()
    second = make(tmp_path, rollout={"overlap": 2}, save_steps=None)
    second.train(resume_from_checkpoint=True)
    assert asked(first) | asked(second) == dict(enumerate(batches(second, 5)))


def test_several_ranks_are_one_batch_ahead_at_most():
    rollout = {"engine": "vllm_server", "overlap": 2, "top_p": 1.0}
    config = ppo_case.section(rollout=rollout, importance_sampling_correction="token")
    engine = OwnWeights(ppo_case.policy())
    engines.check_overlap(config, engine, 1)
    with pytest.raises(TrainingError, match="2 batches ahead are for one process, and there are 4 ranks"):
        engines.check_overlap(config, engine, 4)


def test_an_engine_that_samples_with_the_trained_module_is_refused(tmp_path):
    policy = ppo_case.policy()
    with pytest.raises(TrainingError, match="HFEngine samples with the module that is trained meanwhile"):
        make(tmp_path, policy_model=policy, made_engine=HFEngine(policy, pad_token_id=0))
