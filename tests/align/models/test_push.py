"""A push to a small server on loopback that speaks what `upload_folder` asks of the hub."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from align import cli
from align.models.push import PushError, model_of, push
from align.models.save import save_model
from align.runtime.card import PATH, write_card
from align.runtime.errors import MissingFileError
from tests.tiny_models import byte_tokenizer, save_causal_lm

TOKEN = "hf_0123456789abcdefghij"


class Hub(BaseHTTPRequestHandler):
    """Makes repositories and takes commits of plain files; keeps what it was given on the server."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": f"bad token {self.headers.get('Authorization')}"})
        if self.path == "/api/repos/create":
            self.server.asked = json.loads(body)
            name = f"{self.server.asked['organization']}/{self.server.asked['name']}"
            return self._answer(200, {"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._answer(200, {"files": told})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.address}/some/model/commit/{0:040}"
            return self._answer(200, {"commitUrl": url, "commitOid": f"{0:040}"})
        return self._answer(404, {"error": self.path})

    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address, server.files, server.asked = f"http://127.0.0.1:{server.server_port}", {}, None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    """A run with the model of one stage, and beside its files what is nobody's business."""
    from transformers import AutoModelForCausalLM

    place = tmp_path / "run" / "sft" / "model"
    model = AutoModelForCausalLM.from_pretrained(save_causal_lm(tmp_path / "base"))
    save_model(model, byte_tokenizer(), place)
    write_card(place, "a model", "It speaks.", {"Use": f"{PATH}  # here"}, {"library_name": "transformers"})
    for name in ("optimizer.pt", "trainer_state.json", "notes.log"):
        (place / name).write_bytes(b"{}")
    (place / "checkpoints").mkdir()
    torch.save({}, place / "checkpoints" / "state.pt")
    return place


def test_the_model_alone_is_pushed_with_its_card(hub, folder, capsys):
    run = folder.parents[1]
    assert cli.main(["push", str(run), "some/model", "--stage", "sft", "--private"]) == 0
    assert hub.asked["visibility"] == "private" and f"{hub.address}/some/model" in capsys.readouterr().out
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert hub.files.keys() - {"chat_template.jinja", "special_tokens_map.json"} == wanted | {"README.md"}
    assert all(hub.files[name] == (folder / name).read_bytes() for name in wanted)
    assert b'path = "some/model"' in hub.files["README.md"] and PATH in (folder / "README.md").read_text()


def test_a_run_gives_the_model_of_its_newest_stage(folder):
    run = folder.parents[1]
    assert model_of(run) == model_of(run, "sft") == model_of(folder) == folder
    with pytest.raises(MissingFileError, match="holds no finished model of stage 'ppo'"):
        model_of(run, "ppo")
    with pytest.raises(MissingFileError, match="is neither a model's folder nor a run"):
        model_of(folder / "checkpoints")
    (folder.parent / "trained.json").touch()  # saved, but what follows may still change it
    with pytest.raises(MissingFileError, match="holds no finished model of stage 'sft'"):
        model_of(run, "sft")


def test_of_an_adapters_base_on_this_machine_the_name_alone_leaves_it(hub, tmp_path):
    place = tmp_path / "adapter"
    place.mkdir()
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(2, 2)}, place / "adapter_model.safetensors")
    for base, told in ((str(tmp_path / "base"), "base"), ("org/base", "org/base")):
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 2}))
        push(place, "some/model")
        assert json.loads(hub.files["adapter_config.json"]) == {"base_model_name_or_path": told, "r": 2}


def test_what_the_hub_says_is_one_sentence_without_the_token(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    with pytest.raises(PushError, match="was not pushed to some/model") as refused:
        push(folder, "some/model")
    assert "wrongwrong" not in str(refused.value) and not hub.files
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match="was not pushed to some/model"):
        push(folder, "some/model")
