"""A server for rollouts without vLLM: its routes and answers as far as a trainer asks for them, a transformers model
behind them, and in front the real doors: the key, weights over HTTP, files checked and pulled.

It answers in a thread of this process, and dies as a killed one does: without an answer, and nobody listens any more.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import threading
import time

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from align.runtime.address import listen
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.vllm.auth import RequireKey
from rollouts.vllm.client import Client
from rollouts.vllm.receive import ReceiveWeights
from rollouts.vllm.worker import WeightPuller

KEY = "0123456789abcdef-of-light-servers"


class Worker(WeightPuller):
    """vLLM's part of a worker, with a transformers model."""

    device = torch.device("cpu")

    def __init__(self, model: torch.nn.Module, sees: bool):
        self.engine, self.sees = HFEngine(copy.deepcopy(model), 0, shares_module=False), sees

    def align_describe(self):
        config = self.engine.model.config
        shape = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size}
        shape["layers"] = config.num_hidden_layers
        how = {"max_model_len": 2048, "max_num_seqs": 4, "logprobs": "raw_logprobs", "device": "cpu"}
        return shape | how

    def align_sees(self, path, word):
        return self.sees and super().align_sees(path, word)

    def _align_load(self, stream):
        self.engine.update_weights(stream, 0)
        return []


class LightServer:
    """Listens on a free port.

    Args:
        model: with its shape; its weights are pushed over before anything is asked.
        sees: the trainer's folder.

    Attributes:
        answered: requests for replies that were answered.
        loads: how often weights were loaded.
    """

    def __init__(self, model: torch.nn.Module, *, sees: bool = False):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        self.worker, self.version, self.answered, self.loads = Worker(model, sees), "default", 0, 0
        self.dies_in: int | None = None
        names = ("update_weight_version", "weight_info", "reset_prefix_cache", "collective_rpc", "die")
        routes = [Route(f"/{name}", getattr(self, name), methods=["GET", "POST"]) for name in names]
        routes.append(Route("/inference/v1/generate", self.generate, methods=["POST"]))
        self.receiver = ReceiveWeights(Starlette(routes=routes))
        self.socket = listen("127.0.0.1", 0)
        config = uvicorn.Config(RequireKey(self.receiver, KEY), log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.client = Client(self.url, KEY)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()
        if self.receiver.incoming.folder is not None:
            shutil.rmtree(self.receiver.incoming.folder)

    async def die(self, request: Request) -> JSONResponse:
        self.dies_in = int(request.query_params["in"])
        return JSONResponse({})

    async def update_weight_version(self, request: Request) -> JSONResponse:
        self.version = (await request.json())["new_version"]
        return JSONResponse({})

    async def weight_info(self, request: Request) -> JSONResponse:
        return JSONResponse({"weight_version": self.version})

    async def reset_prefix_cache(self, request: Request) -> JSONResponse:
        return JSONResponse({"success": True})

    async def collective_rpc(self, request: Request) -> JSONResponse:
        call = await request.json()
        self.loads += call["method"] == "align_pull"
        return JSONResponse({"results": [getattr(self.worker, call["method"])(*call.get("args", ()))]})

    async def generate(self, request: Request) -> JSONResponse:
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                for connection in list(self.server.server_state.connections):
                    connection.transport.abort()
                self.server.should_exit = self.server.force_exit = True
                await asyncio.sleep(60)
        body = await request.json()
        asked, ids, engine = body["sampling_params"], body["token_ids"], self.worker.engine
        choice = {"finish_reason": "length", "weight_versions": [{"version": self.version}], "token_ids": []}
        answer = {"choices": [choice]}
        if "prompt_logprobs" in asked:
            scores = zip(ids[1:], engine.token_logprobs([ids])[0], strict=True)
            answer["prompt_logprobs"] = [None, *({str(token): {"logprob": score}} for token, score in scores)]
        else:
            words = {"n": "n", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed"}
            words |= {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
            told = {ours: asked[theirs] for ours, theirs in words.items()}
            (reply,) = engine.generate([ids], SamplingParams(stop_token_ids=tuple(asked["stop_token_ids"]), **told))
            values = reply.full_logprobs or reply.logprobs
            choice["token_ids"], choice["finish_reason"] = list(reply.token_ids), reply.finish_reason
            choice["logprobs"] = {"content": [{"logprob": value} for value in values]}
        self.answered += 1
        return JSONResponse(answer)
