"""How far engines and trainers of different precision are apart on a model of yours, and what `rollout.exact` costs.

    python examples/experiments/precision.py FOLDER [--engines "vllm bf16" …] [--replies 2] [--tokens 64] [--out FILE]

FOLDER holds a causal LM with ChatML's tokens. Each engine answers 16 questions at temperature 1 from the whole
vocabulary. Its log-probabilities of the drawn tokens are compared with those of the trainer's pass, in float32, under
bfloat16 autocast and with bfloat16 weights. The tables are Markdown; what `--out` holds already is shown with them, so
engines may be measured one at a time.

- against float32: |log p - log p of the float32 trainer| a token, and the KL that each trainer sees of a policy whose
  weights were all moved by 1 % at random.
- engine and trainer: the same between the two. Were the engine's the old log-probabilities, the ratio before the first
  step would be exp(trainer - engine): its deviation, the share of tokens outside 1 +- 0.2, and the KL that stands there
  instead of 0 (mean of engine - trainer, with its standard error).
- exact: CPU seconds of sampling, plain and exact, and passes of the trainer a reply.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from align.data.encode import encode_prompts
from align.models.tokenizer import load_tokenizer
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.terminal import Parser, say
from align.trainers.ppo.forward import reply_distribution, reply_logprobs
from align.trainers.ppo.types import TokenBatch, full_logprobs
from data_formats.chat_format import chat_format
from data_formats.records import Message
from rollouts.hf import HFEngine
from rollouts.protocol import Completion, Engine, SamplingParams
from rollouts.select import make_engine
from rollouts.settings import VLLMSettings
from rollouts.weights import checkpoint_tensors

QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of Portugal?",
    "How do I boil an egg?",
    "Write a short poem about rain.",
    "What does a compiler do?",
    "Name three animals that live in the sea.",
    "Explain what a prime number is.",
    "Give me a recipe for pancakes.",
    "Who was Marie Curie?",
    "How far away is the moon?",
    "Translate 'good morning' into French.",
    "What should I pack for a hike?",
    "Tell me a story about a fox.",
    "Why do leaves fall in autumn?",
    "What is 17 times 6?",
    "How can I sleep better?",
)
TRAINERS = ("float32", "bf16 autocast", "bf16 weights")
HF = tuple(f"hf {name}" for name in TRAINERS)  # it samples with the trainer's module
ENGINES = (*HF, "vllm float32", "vllm bf16")
CLIP = 0.2
MOVED = 0.01


class Models:
    """One model in each trainer's precision, made when it is asked for."""

    def __init__(self, folder: str):
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self.whole = whole.to("cuda" if torch.cuda.is_available() else "cpu")
        self.half: nn.Module | None = None

    @contextmanager
    def named(self, trainer: str) -> Iterator[nn.Module]:
        """That trainer's, in its precision."""
        autocast = torch.autocast(self.whole.device.type, torch.bfloat16)
        with torch.no_grad(), autocast if trainer == "bf16 autocast" else nullcontext():
            yield self._half() if trainer == "bf16 weights" else self.whole

    def _half(self) -> nn.Module:
        self.half = self.half or copy.deepcopy(self.whole).to(torch.bfloat16)
        return self.half

    @contextmanager
    def moved(self) -> Iterator[None]:
        """All weights times 1 + a hundredth of a normal number; they are as they were afterwards."""
        kept, self.half = self.whole, None
        self.whole, generator = copy.deepcopy(kept), torch.Generator(kept.device).manual_seed(0)
        for weight in self.whole.parameters():
            weight.mul_(1 + MOVED * torch.randn(weight.shape, generator=generator, device=weight.device))
        try:
            yield
        finally:
            self.whole, self.half = kept, None


class Replies:
    """What an engine answered, as the trainer's passes take it; a micro-batch is one question's replies."""

    def __init__(self, prompts: list[list[int]], completions: Sequence[Completion]):
        each = len(completions) // len(prompts)
        prompt_ids = [prompt for prompt in prompts for _ in range(each)]
        reply_ids = [completion.token_ids for completion in completions]
        self.tokens = TokenBatch.from_ids(prompt_ids, reply_ids, 0, each)
        self.micros = torch.arange(len(completions)).split(each)
        self.lengths = [len(reply) for reply in reply_ids]
        self.said = torch.tensor([logp for one in completions for logp in full_logprobs(one)], dtype=torch.float64)

    def scored(self, models: Models, trainer: str) -> Tensor:
        """Log-probability of every reply token, float64, by the trainer's pass."""
        found = []
        with models.named(trainer) as model:
            for rows in self.micros:
                batch = self.tokens.rows(rows).to(model.device)
                found.append(reply_logprobs(model, batch, 1.0)[batch.mask_NS].double().cpu())
        return torch.cat(found)


class Pass:
    """A `rollouts.exact.TrainerPass` of these models; counts how often it is made."""

    def __init__(self, models: Models, trainer: str, reply_room: int):
        self.models, self.trainer, self.reply_room, self.count = models, trainer, reply_room, 0

    def __call__(self, prompt: Sequence[int], reply: Sequence[int], temperature: float, watch: Callable) -> list[float]:
        self.count += 1
        with self.models.named(self.trainer) as model:
            batch = TokenBatch.from_ids([prompt], [reply], reply_room=self.reply_room).to(model.device)
            said = reply_distribution(model, batch, temperature, entropy=True, watch=watch)
        return said.full[batch.mask_NS].tolist()


def engine_named(name: str, models: Models, room: int, replies: int, trainer_pass: Pass | None = None) -> Engine:
    """One of `ENGINES`, with the models' weights."""
    kind, precision = name.split(" ", 1)
    if kind == "hf":
        autocast = torch.bfloat16 if precision == "bf16 autocast" else None
        with models.named(precision) as model:
            return HFEngine(model, 0, replies, autocast_dtype=autocast, trainer_pass=trainer_pass)
    settings = VLLMSettings(room, dtype="float32" if precision == "float32" else "bfloat16", max_num_seqs=replies)
    engine = make_engine("vllm", models.whole, pad_token_id=0, vllm=settings, trainer_pass=trainer_pass)
    engine.update_weights(checkpoint_tensors(models.whole), 0)
    return engine


def measured(name: str, models: Models, prompts: list[list[int]], params: SamplingParams) -> dict[str, Any]:
    """One engine beside every trainer, and exact beside plain."""
    room = max(map(len, prompts)) + params.max_new_tokens
    count = len(prompts) * params.n
    with closing(engine_named(name, models, room, count)) as engine:
        engine.generate(prompts[:2], params)
        seconds, completions = timed(lambda: engine.generate(prompts, params))
    replies = Replies(prompts, completions)
    by_trainer = {trainer: replies.scored(models, trainer) for trainer in TRAINERS}
    exact_of = name.removeprefix("hf ") if name.startswith("hf") else "float32" if "32" in name else "bf16 autocast"
    drawing = Pass(models, exact_of, params.max_new_tokens)
    with closing(engine_named(name, models, room, count, drawing)) as engine:
        engine.generate(prompts[:2], params)
        drawing.count = 0
        exact_seconds, exact = timed(lambda: engine.generate(prompts, params))
    passes, settled = drawing.count / count, Replies(prompts, exact)
    again = [logp for ids in rows_of(settled) for logp in drawing(*ids, 1.0, lambda *_: None)]
    return {
        "tokens": len(replies.said),
        "engine": apart(replies.said, by_trainer["float32"]),
        "trainers": {trainer: apart(logps, by_trainer["float32"]) for trainer, logps in by_trainer.items()},
        "pairs": {trainer: between(replies, logps) for trainer, logps in by_trainer.items()},
        "exact": {
            "trainer": exact_of,
            "seconds": seconds,
            "exact_seconds": exact_seconds,
            "tokens": len(settled.said),
            "passes": passes,
            "apart": float((settled.said - torch.tensor(again, dtype=torch.float64)).abs().max()),
        },
    }


def rows_of(replies: Replies) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and reply of each."""
    sizes = zip(replies.tokens.prompt_lengths_N.tolist(), replies.tokens.lengths_N.tolist(), strict=True)
    for row, (prompt, length) in enumerate(sizes):
        ids = replies.tokens.input_ids_NT[row].tolist()
        yield ids[:prompt], ids[prompt:length]


def timed(work: Callable[[], list[Completion]]) -> tuple[float, list[Completion]]:
    """CPU seconds of this process, and what came of it."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def apart(logps: Tensor, others: Tensor) -> list[float]:
    """|difference| a token, nats: mean, 99 %, max."""
    gap = (logps - others).abs()
    return [float(gap.mean()), float(gap.quantile(0.99)), float(gap.max())]


def between(replies: Replies, trainer: Tensor) -> dict[str, Any]:
    """What stands between an engine and a trainer that learns from its replies."""
    gap = trainer - replies.said
    ratio = gap.exp()
    by_reply = torch.stack([part.sum() for part in gap.split(replies.lengths)])
    return {
        "apart": apart(trainer, replies.said),
        "ratio_sd": float((ratio - 1).square().mean().sqrt()),
        "clipped": float(((ratio - 1).abs() > CLIP).double().mean()),
        "kl": float(-gap.mean()),
        "kl_error": float(gap.std() / math.sqrt(len(gap))),
        "k3": float((ratio - 1 - gap).mean()),
        "reply_sd": float(by_reply.square().mean().sqrt()),
    }


def kl_seen(models: Models, prompts: list[list[int]], params: SamplingParams) -> dict[str, float]:
    """Nats a token that each trainer sees between a moved policy and the model, on the policy's replies in float32."""
    with models.moved():
        replies = Replies(prompts, engine_named("hf float32", models, 0, 64).generate(prompts, params))
        policy = {trainer: replies.scored(models, trainer) for trainer in TRAINERS}
    return {trainer: float((policy[trainer] - replies.scored(models, trainer)).mean()) for trainer in TRAINERS}


def tables(found: dict[str, Any]) -> str:
    """Markdown of what was measured."""

    def cells(values: Sequence[float]) -> str:
        return " | ".join(f"{value:.2g}" for value in values)

    engines = found["engines"]
    lines = ["| against float32 | mean | 99 % | max | KL seen |", "|---|---:|---:|---:|---:|"]
    first = next(iter(engines.values()))
    for trainer in TRAINERS:
        kl = found["kl"][trainer]
        lines.append(f"| trainer {trainer} | {cells(first['trainers'][trainer])} | {kl:.4f} |")
    lines += [f"| engine {name} | {cells(one['engine'])} | |" for name, one in engines.items()]
    lines += ["", "| trainer | engine | mean | 99 % | max | ratio sd | clipped | KL instead of 0 | a reply, sd |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for trainer in TRAINERS:
        for name, one in engines.items():
            pair = one["pairs"][trainer]
            lines.append(
                f"| {trainer} | {name} | {cells(pair['apart'])} | {pair['ratio_sd']:.2g} | {pair['clipped']:.2%} | "
                f"{pair['kl']:+.1e} ± {pair['kl_error']:.0e} | {pair['reply_sd']:.2g} |"
            )
    lines += ["", "| exact | drawn by the trainer in | s plain | s exact | passes a reply | max difference |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for name, one in engines.items():
        exact = one["exact"]
        lines.append(
            f"| {name} | {exact['trainer']} | {exact['seconds']:.1f} | {exact['exact_seconds']:.1f} | "
            f"{exact['passes']:.2f} | {exact['apart']:g} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, write and print; returns all figures."""
    parser = Parser(prog="python examples/experiments/precision.py", description="Engines and trainers by precision.")
    parser.add_argument("folder", metavar="FOLDER", help="a causal LM with its tokenizer")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=HF, help="what samples (default: all of hf)")
    parser.add_argument("--replies", type=int, default=2, help="replies a question (default: 2)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a reply at most (default: 64)")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="how many of them (default: all)")
    parser.add_argument("--out", type=Path, default=Path("precision.json"), help="figures (default: precision.json)")
    args = parser.parse_args(argv)
    models, tokenizer = Models(args.folder), load_tokenizer(args.folder)
    prompts = encode_prompts(tokenizer, [[Message("user", text)] for text in QUESTIONS[: args.questions]])
    stops = chat_format(tokenizer).stop_ids
    params = SamplingParams(n=args.replies, max_new_tokens=args.tokens, stop_token_ids=stops, seed=0)
    found = read_object(args.out, "remove it") or {"engines": {}}
    if "kl" not in found:
        found["kl"] = kl_seen(models, prompts, params)
    for name in args.engines:
        found["engines"][name] = measured(name, models, prompts, params)
        write_json(args.out, found)  # what was measured stays, whatever comes next
    say(tables(found))
    return found


if __name__ == "__main__":
    main()
