"""Where PPO's critical path moves as cards are added, and published runs beside what `align scale` says of them.

    python examples/experiments/growth.py                   1 to 64 H200 on paper: simulated schedules
    python examples/experiments/growth.py published         steps that other projects published, predicted

Both are `align.scale` with its stated efficiencies: nothing is fitted, nothing runs. Replies end at random (an
exponential distribution, cut at the longest), so that ranks wait for the longest one. What the schedule predicts of
runs on this machine is measured by growth_measured.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from align.recipe import load_recipe
from align.scale import Efficiency, Layout, Scaled, read_cluster, scale
from align.scale.choose import stage_scale
from align.scale.growth import simulated

CARDS = (1, 2, 4, 8, 16, 32, 64)
GRPO = ("ppo.ptx_coef=0", "ppo.advantage=grpo", "ppo.critic_from=null", "ppo.critic_warmup_steps=0", "ppo.kl_coef=0")
GRPO += ("ppo.rollout.num_generations=32", "ppo.num_mini_batches=4", "ppo.eval_data=[]", "ppo.rollout_batch_size=64")
PPO = ("ppo.ptx_coef=0", "ppo.rollout_batch_size=1024", "ppo.rollout.num_generations=1", "ppo.num_mini_batches=8")
SMALL_REWARD = "pmp.init_from=Qwen/Qwen2.5-0.5B"  # there is no reward model in theirs


@dataclass(frozen=True, slots=True)
class Published:
    """A step that somebody timed; `scored`: with the reward model's pass."""

    who: str
    model: str
    cards: str
    seconds: float
    told: tuple[str, ...]
    prompt: int
    longest: int
    mean: int
    scored: bool = False


PUBLISHED = (
    Published("NeMo-RL 0.5, GRPO", "meta-llama/Llama-3.1-8B", "8xH100,2", 92.8, GRPO, 128, 3968, 891),
    Published("NeMo-RL 0.4, GRPO", "Qwen/Qwen3-32B", "8xH100,4", 400, (*GRPO, SMALL_REWARD), 128, 3968, 3098),
    Published("NeMo-RL 0.4, GRPO", "Qwen/Qwen3-30B-A3B", "8xH100,4", 170, (*GRPO, SMALL_REWARD), 128, 3968, 3028),
    Published("OpenRLHF, PPO", "meta-llama/Llama-2-7B", "8xA100-80,2", 471, PPO, 1024, 1024, 512, scored=True),
    Published("OpenRLHF, PPO", "meta-llama/Llama-2-13B", "8xA100-80,4", 609, PPO, 1024, 1024, 512, scored=True),
    Published("OpenRLHF, PPO", "meta-llama/Llama-2-70B", "8xA100-80,4", 4489, PPO, 1024, 1024, 512, scored=True),
)


def beside_published() -> str:
    """Each published step, at full length and with replies of the published mean."""
    rows = ["| whose | model | cards | layout | full length, s | simulated, s | published, s |", "|---" * 7 + "|"]
    for one in PUBLISHED:
        lengths = [f"ppo.rollout.max_prompt_length={one.prompt}", f"ppo.rollout.max_completion_length={one.longest}"]
        recipe = load_recipe("qwen_rlhf", [*one.told, *lengths, f"model.path={one.model}"], world_size=1)
        found = scale(recipe, read_cluster(one.cards), Efficiency())
        begins = f"| {one.who} | {one.model.rpartition('/')[2]} | {one.cards} |"
        if not isinstance(found, Scaled):
            rows.append(f"{begins} none fits | | | {one.seconds:g} |")
            continue
        stage = next(stage for stage in found.stages if stage.plan.stage == "ppo")
        unlike = simulated(found.recipe, stage, found.layout, mean=one.mean)
        scoring = sum(phase.seconds for phase in stage.phases if phase.part == "score")
        full = stage.seconds - (0 if one.scored else scoring)
        drawn = unlike.seconds - (0 if one.scored else unlike.phases["score"])
        rows.append(f"{begins} {found.layout.words} | {full:.0f} | {drawn:.0f} | {one.seconds:g} |")
    return "\n".join(rows)


def on_paper() -> str:
    """Iterations of Qwen2.5-7B on 1 to 64 H200, without pretraining rows, replies of unlike length: engines in the
    ranks, and half of the cards for servers, in turn and ahead."""
    told = ["ppo.ptx_coef=0", "ppo.importance_sampling_correction=token", "ppo.eval_data=[]"]
    told += ["ppo.micro_batch_size=8", "ppo.rollout.vllm.kv_cache_gib=20"]
    rows = [
        "| cards | ranks | servers | ahead | seconds | most of it | waiting | speed |",
        "|---" * 8 + "|",
    ]
    first = 0.0
    for cards in CARDS:
        cluster = read_cluster(f"{min(8, cards)}xH200,{max(1, cards // 8)}")
        for ranks, ahead in ((cards, False), *(((cards // 2, False), (cards // 2, True)) if cards > 1 else ())):
            layout = Layout(cluster, ranks, "fsdp2" if ranks > 1 else "one", cards - ranks)
            recipe = load_recipe("qwen_rlhf", [*told, *_words(layout, ahead)], world_size=ranks)
            stage = stage_scale(recipe, "ppo", layout, Efficiency())
            found = simulated(recipe, stage, layout, mean=512, overlap=ahead)
            first = first or found.seconds
            share, waited = found.phases[found.longest] / found.seconds, found.phases["waiting"] / found.seconds
            rows.append(
                f"| {cards} | {ranks} | {layout.servers or 'in the ranks'} | {'yes' if ahead else 'no'} | "
                f"{found.seconds:.1f} | {found.longest} {share:.0%} | {waited:.0%} | {first / found.seconds:.1f} |"
            )
    return "\n".join(rows)


def _words(layout: Layout, ahead: bool) -> list[str]:
    engine = "vllm_server" if layout.servers else "vllm"
    urls = ",".join(f"https://engine-{number}:8000" for number in range(layout.servers))
    words = [f"ppo.rollout.engine={engine}", f"ppo.rollout.overlap={str(ahead).lower()}"]
    return [*words, "ppo.rollout.vllm.dtype=bfloat16", f"ppo.rollout.vllm.urls=[{urls}]"]


def main(argv: list[str] | None = None) -> None:
    """As the word says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="paper", choices=("paper", "published"))
    print(beside_published() if parser.parse_args(argv).what == "published" else on_paper())


if __name__ == "__main__":
    main()
