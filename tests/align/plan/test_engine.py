"""Memory of an engine with weights of its own, by hand."""

import pytest

from align.plan import plan_stages
from align.recipe import load_recipe

TINY = "qwen2.5_0.5b_lora_24gb"  # 494,032,768 parameters, 24 layers, 2 key-value heads of 64
WEIGHTS = 494_032_768 * 2
CACHE = 24 * 2 * 2 * 64 * 2 * 2048  # layers, keys and values, heads, width, bytes, tokens: of one reply


def engine(changes, device="gpu"):
    recipe = load_recipe(TINY, ["data_root=/data", *(f"ppo.rollout.{key}" for key in changes)])
    ppo = next(plan for plan in plan_stages(recipe, device=device) if plan.stage == "ppo")
    return {moment.name: sum(part.bytes for part in moment.parts if part.role == "engine") for moment in ppo.moments}


def test_hf_and_servers_elsewhere_hold_nothing_here():
    for changes in (["engine=hf"], ["engine=auto"], ["engine=vllm_server", "vllm.urls=[http://127.0.0.1:8000]"]):
        assert set(engine(changes).values()) == {0}
    elsewhere = engine(["engine=vllm_server", "vllm.urls=[http://127.0.0.1:8000]"])
    assert "engine: sampling" in elsewhere and not [name for name in elsewhere if name.startswith("policy: sampling")]


@pytest.mark.parametrize("sleep", ["true", "false"])
def test_on_a_gpu_it_holds_weights_and_cache_while_it_does_not_sleep(sleep):
    found = engine(["engine=vllm", f"vllm.sleep={sleep}"])
    whole = WEIGHTS + 128 * CACHE
    assert found.pop("engine: sampling") == whole
    assert set(found.values()) == ({0} if sleep == "true" else {whole})


def test_on_a_cpu_it_never_lets_go():
    found = engine(["engine=vllm_server", "vllm.dtype=float32", "vllm.kv_cache_gib=0.5"], device="cpu")
    assert set(found.values()) == {2 * WEIGHTS + 2**29}


def test_weights_that_wait_for_an_engine_are_one_copy_a_batch_ahead_in_the_hosts_memory():
    told = ["engine=vllm_server", "vllm.adapters=merge", "top_p=1.0"]
    found = {}
    for device in ("cpu", "gpu"):
        for ahead in (1, 3):
            keys = [f"ppo.rollout.{key}" for key in (*told, f"overlap={ahead}")]
            correction = "ppo.importance_sampling_correction=token"
            recipe = load_recipe(TINY, ["data_root=/data", correction, *keys])
            ppo = next(plan for plan in plan_stages(recipe, device=device) if plan.stage == "ppo")
            moment = [part for part in ppo.moments[0].parts if part.role == "engine"]
            found[device, ahead] = sum(part.bytes for part in moment if part.kind == "weight copies")
    assert found == {("cpu", 1): 0, ("cpu", 3): 3 * WEIGHTS, ("gpu", 1): 0, ("gpu", 3): 0}


def test_the_decode_loop_takes_its_room_before_it_reads_prompts():
    from align.plan import passes
    from rollouts import decode

    recipe = load_recipe(TINY, ["data_root=/data", "ppo.rollout.engine=hf"])
    ppo = next(plan for plan in plan_stages(recipe, device="gpu") if plan.stage == "ppo")
    caches = [
        sum(part.bytes for part in moment.parts if part.kind == "kv cache")
        for moment in ppo.moments
        if "sampling" in moment.name
    ]
    assert len(caches) == 2 and caches[0] == caches[1] > 0
    assert passes.READ_AT_ONCE == decode.READ_AT_ONCE
