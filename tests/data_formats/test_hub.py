"""Datasets through the real `datasets` library: local folders, streamed and not, and every way to fail."""

import json
import os
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import pytest

from data_formats import Comparison, DataError, Demonstration, Document, HubDataset, Message, MissingFileError, read
from data_formats import stream as read_lazily

ROOT = Path(__file__).parents[2]
PAIRS = [{"prompt": f"q{at}", "chosen": "good", "rejected": "bad" if at else "good"} for at in range(3)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def folder(tmp_path, ending, rows, name="train"):
    path = tmp_path / "data"
    path.mkdir(exist_ok=True)
    if ending == "jsonl":
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet", row_group_size=500)
    return str(path)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_formats_drops_and_report(tmp_path, ending, streaming):
    name = folder(tmp_path, ending, PAIRS)
    result = read(HubDataset(name, streaming=streaming), Comparison, category="c")
    user = [(Message("user", f"q{at}"),) for at in (1, 2)]
    assert result.records == [Comparison(prompt, "good", "bad", category="c") for prompt in user]
    report = result.report
    assert (report.path, report.format, report.rows, report.used) == (f"hub:{name}", "preference", 3, 2)
    assert report.dropped == {"identical replies": 1}


def test_a_string_is_short_for_the_streamed_train_split_and_a_limit_stops(tmp_path):
    name = folder(tmp_path, "jsonl", [{"text": f"d{at}"} for at in range(5)])
    folder(tmp_path, "jsonl", [{"text": "held"}], name="test")
    assert read(f"hub:{name}", Document, limit=2).records == [Document("d0"), Document("d1")]
    assert read(HubDataset(name, split="test"), Document).records == [Document("held")]


@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_not_there_is_named(tmp_path, streaming):
    name = folder(tmp_path, "jsonl", PAIRS)
    with pytest.raises(DataError, match=r"field 'hub_split': there is no split 'dev' \(.*train"):
        read(HubDataset(name, split="dev", streaming=streaming), Comparison)
    with pytest.raises(DataError, match=r"field 'hub_config': there is no configuration 'zh' \(.*default"):
        read(HubDataset(name, config="zh", streaming=streaming), Comparison)
    with pytest.raises(MissingFileError, match=r"hub:\./nowhere: no such folder"):
        read(HubDataset("./nowhere", streaming=streaming), Comparison)
    with pytest.raises(DataError, match="only text files are split"):
        read(HubDataset(name, streaming=streaming), Document, split="lines")


@pytest.mark.parametrize("streaming", [True, False])
def test_malformed_rows_and_shards_are_named(tmp_path, streaming):
    name = folder(tmp_path, "jsonl", [{"instruction": "i", "output": "o"}, {"instruction": "i", "output": None}])
    with pytest.raises(DataError, match=r"^hub:.*data, row 2, field 'output': expected a string"):
        read(HubDataset(name, streaming=streaming), Demonstration)
    (Path(name) / "train.jsonl").write_text('{"text": "a"}\n{bad\n')
    with pytest.raises(DataError, match=r"^hub:.*data: cannot be loaded \(JSON parse error"):
        read(HubDataset(name, streaming=streaming), Document)


@pytest.mark.slow
def test_memory_is_flat_in_streaming(tmp_path):
    """In a process of its own, as Arrow's memory is not Python's. Its pool grows by some 60 MB over the first shards
    and no further, so that 192 MB more of them, of either kind, must not show."""
    code = (
        "import pathlib, sys, data_formats as d\n"
        "for name in sys.argv[1:]:\n"
        "    count = sum(1 for _ in d.stream('hub:' + name, d.Document))\n"
        "    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    print(count, status.split('VmHWM:')[1].split()[0])\n"
    )
    rows = [{"text": f"{at} " + random.Random(at).randbytes(3000).hex()} for at in range(2000)]  # 12 MB
    names = []
    for shards in (2, 18):
        for ending in ("jsonl", "parquet"):
            (tmp_path / f"{ending}{shards}").mkdir()
            name = folder(tmp_path / f"{ending}{shards}", ending, rows, name="train-0")
            for shard in range(1, shards):
                os.link(Path(name) / f"train-0.{ending}", Path(name) / f"train-{shard}.{ending}")
            names.append(name)
    ran = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    counts, peaks = zip(*(map(int, line.split()) for line in ran.stdout.splitlines()), strict=True)
    assert counts == (4000, 4000, 36_000, 36_000)
    assert (peaks[-1] - peaks[1]) * 1024 < 96_000_000


class _Refuses(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def _said(tmp_path, **environment):
    code = (
        "import data_formats as d\n"
        "try: d.read('hub:org/name', d.Document)\n"
        "except d.AlignError as error: print(type(error).__name__, error)\n"
    )
    known = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=known | environment, capture_output=True, text=True, timeout=60
    )
    return ran.stdout


@pytest.mark.slow
def test_a_hub_that_knows_no_such_name_and_one_that_is_out_of_reach(tmp_path):
    assert _said(tmp_path, HF_HUB_OFFLINE="1").startswith("DataError hub:org/name: the hub cannot be reached (")
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = _said(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert said.startswith("MissingFileError hub:org/name: no such dataset, or it is not open to you (")


def test_reading_again_reads_again(tmp_path):
    lazily = read_lazily("hub:" + folder(tmp_path, "jsonl", PAIRS), Comparison)
    assert list(lazily) == list(lazily) and lazily.report.rows == 3


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_column_s_nulls_are_no_arguments_whatever_the_files_are(tmp_path, ending):
    """Versions of the library make columns of JSON lines too."""
    asked = [{"role": "user", "content": "q"}]
    calls = [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "power", "arguments": {"base": 2}}]
    rows = [{"messages": [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    result = read(f"hub:{folder(tmp_path, ending, rows)}", Demonstration)
    given = [record.messages[-1].tool_calls[0].arguments for record in result.records]
    assert given == ['{"city": "Paris"}', '{"base": 2}']
    if ending == "parquet":
        assert result.report.repaired == {"a column's nulls removed from calls and tools": 2}
