"""Weights by NCCL. The real test wants two CUDA devices and vLLM's CUDA build; nobody has run it yet."""

import os
import subprocess
import sys
import time

import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.vllm.http import Address, ServerGone
from rollouts.vllm.start import write_config
from rollouts.vllm.transfer import NCCLSender
from rollouts.weights import checkpoint_tensors
from tests.rollouts.vllm.models import build

KEY = "0123456789abcdef-the-key"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so():
    with pytest.raises(RolloutError, match="there is none here: push them by files"):
        NCCLSender(Address("http://127.0.0.1:9", KEY), "127.0.0.1")


@pytest.mark.gpu
@pytest.mark.needs("vllm")
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_server_on_another_gpu_computes_with_what_was_sent(tmp_path):
    model = build(seed=3).cuda(0)
    write_config(model, tmp_path)
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "rollouts.vllm.serve", "--model", str(tmp_path), "--uds", str(path)]
    command += ["--load-format", "dummy", "--dtype", "float32", "--max-model-len", "64", "--kv-cache-gib", "0.05"]
    command += ["--weight-transfer-config", '{"backend": "nccl"}']
    environment = os.environ | {"ALIGN_VLLM_API_KEY": KEY, "CUDA_VISIBLE_DEVICES": "1"}
    with subprocess.Popen(command, env=environment) as server:
        try:
            address = Address(f"unix://{path}", KEY)
            deadline = time.monotonic() + 300
            while True:
                try:
                    address.ask("/health", timeout=5)
                    break
                except ServerGone:
                    assert server.poll() is None and time.monotonic() < deadline
                    time.sleep(0.5)
            sender = NCCLSender(address, "127.0.0.1")
            sender.send(checkpoint_tensors(model), "sent")
            asked = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
            body = {"token_ids": [5, 6, 7], "sampling_params": asked}
            choice = address.ask("/inference/v1/generate", body, timeout=60)["choices"][0]
            ids = torch.tensor([[5, 6, 7]], device=0)
            for _ in range(6):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            assert choice["token_ids"] == ids[0, 3:].tolist()
            assert {span["version"] for span in choice["weight_versions"]} == {"sent"}
            sender.close()
        finally:
            server.terminate()
