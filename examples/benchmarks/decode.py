"""Tokens sampled a second: our engine beside `generate` of transformers, and beside a bare loop.

    python examples/benchmarks/decode.py [--cases A B B4 C] [--rounds 5] [--out FOLDER]

The cases of `ppo.py`: replies of exactly 128 tokens at temperature 1 from the whole vocabulary, the same prompts for
all. `generate` gets every prompt once for each of its replies, at most 64 rows at once, sorted by length; it draws and
does nothing else. The engine also keeps the log-probability of every token. `bare` is the loop of `bare.py`.
"""

from __future__ import annotations

import sys

import measuring
import ppo
import small_models
from measuring import Case, Turns

CASES = ppo.CASES
AT_ONCE = 64  # rows


def align(case: Case, turns: Turns) -> None:
    """`HFEngine`, what PPO samples with where there is no vLLM."""
    from rollouts.hf import HFEngine
    from rollouts.protocol import SamplingParams

    engine = HFEngine(_model(case), 0, AT_ONCE)
    params = SamplingParams(n=case["times"], max_new_tokens=case["length"], top_p=1.0, seed=0)
    prompts = small_models.prompt_ids(case)
    turns.repeat(lambda: sum(len(completion.token_ids) for completion in engine.generate(prompts, params)))


def generate(case: Case, turns: Turns) -> None:
    """The method of the model."""
    import torch
    from bare import left_padded
    from transformers import GenerationConfig

    model = _model(case)
    rows = [prompt for prompt in small_models.prompt_ids(case) for _ in range(case["times"])]
    rows.sort(key=len)
    config = GenerationConfig(
        max_new_tokens=case["length"], do_sample=True, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )

    @torch.no_grad()
    def sample() -> int:
        for start in range(0, len(rows), AT_ONCE):
            ids, mask = left_padded(rows[start : start + AT_ONCE], model.device)
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return len(rows) * case["length"]

    turns.repeat(sample)


def bare(case: Case, turns: Turns) -> None:
    """The loop and nothing else."""
    from bare import decode

    model, prompts = _model(case), small_models.prompt_ids(case)
    turns.repeat(lambda: decode(model, prompts, case["times"], case["length"]).numel())


def _model(case: Case):
    import torch

    model = small_models.make("Qwen2ForCausalLM", case, eos_token_id=None).eval()
    model.generation_config.eos_token_id = None
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


SIDES = {"align": align, "generate": generate, "bare": bare}


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    measuring.program(__file__, __doc__, SIDES, CASES, unit="tokens", tiny=ppo.TINY, argv=argv)


if __name__ == "__main__":
    main(sys.argv[1:])
