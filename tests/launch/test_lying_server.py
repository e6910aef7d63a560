"""A server at launch.vllm.url that is no vLLM, or lies: the run says so, and nothing more."""

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, write_rows
from tests.trainers.alignment import REWARD

DEEP = "[" * 200_000
VLLM = {"/health": "", "/version": {"version": "0.33.0"}, "/server_info": {}}
LIMIT_S = 1.0


class Liar:
    """Answers each path from a table: text, JSON, or (status, text); None: it stays silent."""

    def __init__(self, table):
        self.table, self.seen = table, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def serve(self):
        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with suppress(OSError), connection:
            asked = connection.recv(2**16).decode()
            self.seen.append(asked)
            found = self.table.get(asked.split()[1].partition("?")[0], (404, "no such page"))
            if callable(found):
                found(connection)
                return
            status, body = found if isinstance(found, tuple) else (200, found)
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
            head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n"
            head += "Location: http://127.0.0.1:9/\r\n" if status == 302 else ""
            connection.sendall(f"{head}\r\n".encode() + body)


def endless(connection):
    """A body without end."""
    connection.sendall(b"HTTP/1.1 200 x\r\n\r\n" + b"[")
    while True:
        connection.sendall(b" " * 2**20)


def dripping(connection):
    """A head that never ends, a byte at a time."""
    connection.sendall(b"HTTP/1.1 200 x\r\nX: ")
    while True:
        time.sleep(0.1)
        connection.sendall(b"a")


@pytest.fixture
def plan(tmp_path):
    """Writes a plan that asks a server; returns its arguments."""
    write_fake_model(tmp_path / "model", CONFIG)

    def write(url, **keys):
        (tmp_path / "own.py").write_text(REWARD)
        write_rows(
            tmp_path / "rows.jsonl",
            [{"prompt": f"Where is {n}?", "completion": f"In van {n}."} for n in range(16)],
        )
        server = json.dumps({"url": url, "timeout_s": LIMIT_S, **keys})
        (tmp_path / "plan.yaml").write_text(
            f"model: model\ndata: {{path: rows.jsonl}}\nstages:\n"
            "  - {name: grpo, objective: grpo, update: lora, rank: 4, learning_rate: 1e-4,"
            " seq_len: 96, max_steps: 1, response_tokens: 6, generations: 4, holdout: 0.0,"
            " reward: 'own.py:score', rollouts: vllm}\n"
            f"launch: {{device: cpu, vllm: {server}}}\n"
        )
        return "run", "plan.yaml", "--output", "run"

    return write


ANOTHER = "with something that vLLM does not: "


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/version", [1, 2], f"answered /version {ANOTHER}Expected `object`, got `array`"),
        ("/version", "null", f"{ANOTHER}Expected `object`, got `null`"),
        ("/version", DEEP, "got `array`"),
        ("/version", '{"version": "0.33.0", "x": ' + DEEP, "nested too deeply"),
        ("/version", {"version": 33}, "Expected `str`, got `int` - at `$.version`"),
        ("/version", "<html>hello</html>", "JSON is malformed"),
        ("/version", "9" * 99_999 + ".1", "Number out of range"),
        ("/health", [1], f"answered /health {ANOTHER}"),
        ("/v1/models", {}, "missing required field `data`"),
        ("/v1/models", {"data": "abc"}, "Expected `array`, got `str` - at `$.data`"),
        ("/v1/models", {"data": [1, 2]}, "Expected `object`, got `int` - at `$.data[0]`"),
        ("/v1/models", {"data": []}, "serves no model"),
        ("/v1/models", {"data": [{"id": "\0" * 9999}]}, "and the stage trains"),
        ("/v1/models", {"data": [{"id": "m", "max_model_len": "x"}]}, "at `$.data[0].max_model_len`"),
        ("/server_info", [], f"answered /server_info?config_format=json {ANOTHER}"),
        ("/server_info", {"vllm_config": {"lora_config": {"max_lora_rank": []}}}, "max_lora_rank"),
        ("/health", (302, ""), "refused /health: 302"),
        ("/health", (500, "\x1b[31mred"), "refused /health: 500 \\x1b[31mred"),
        ("/health", (500, DEEP), "refused /health: 500 [[["),
        ("/version", endless, "answered /version with more than 16,777,216 bytes"),
        ("/version", dripping, f"did not answer /version within {LIMIT_S:g} s"),
        ("/version", lambda connection: time.sleep(3), f"did not answer /version within {LIMIT_S:g} s"),
    ],
)  # fmt: skip
def test_a_server_that_lies_ends_a_run_before_it_begins(call, plan, path, answer, said):
    """With what is wrong with which answer; other fields than ours do not count."""
    arguments = plan("http://127.0.0.1:9")
    served = {"data": [{"id": str(Path("model").resolve()), "max_model_len": 4096}]}
    with Liar(VLLM | {"/v1/models": served, path: answer}) as server:
        began = time.monotonic()
        code, _, err = call(*arguments, "--set", f"launch.vllm.url={server.url}")
    text = " ".join(err.split())
    assert (code, err) == (4, err)
    assert f"the vLLM server at {server.url} " in text
    assert said in text
    assert "\x1b" not in err
    assert "Traceback" not in err
    assert len(err) < 2000
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("http://gpu7:8000", "sk-secret", "launch.vllm.url: http://gpu7:8000 is another machine"),
        ("http://127.0.0.2.example", "sk-secret", "to an https address, or to this machine"),
        ("http://127.0.0.1:9", "sk-\nsecret", "holds a character that no header may have"),
        ("http://127.0.0.1:9/ü", None, "is no web address"),
    ],
)
def test_a_key_goes_to_this_machine_or_by_https_alone(call, plan, monkeypatch, url, key, said):
    """Nothing is asked before that is clear, and the key is in no message."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it was asked"))
    if key is not None:
        monkeypatch.setenv("VLLM_API_KEY", key)
    code, _, err = call(*plan(url))
    assert (code, said in " ".join(err.split())) == (2, True)
    assert "secret" not in err


def test_a_server_on_this_machine_gets_the_key(call, plan, monkeypatch):
    """In the header that vLLM reads."""
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    with Liar({}) as server:
        assert call(*plan(server.url))[0] == 4
    assert "Authorization: Bearer sk-1\r\n" in server.seen[0]
