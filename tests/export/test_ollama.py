"""`advise export RUN --to ollama`: the Modelfile, what stands in it and why, and what is refused."""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from advisor.export.exporter import Wanted
from advisor.export.ollama import export
from advisor.export.ollama.go_reader import written_by_ollama
from advisor.export.ollama.modelfile import Modelfile, can_hold
from advisor.export.ollama.parameters import parameters
from advisor.ground.errors import InputError, TrainingFailed
from tests.export.chat_templates import LLAMA_2, REFUSED, ZEPHYR
from tests.export.runs import CHATML, write_run, write_tokenizer

QUESTION = [{"role": "user", "content": "Hello"}]


def write_gguf(path: Path, *, adds_bos: bool = False, adds_eos: bool = False) -> None:
    """A .gguf file with the flags that say what llama.cpp adds to a text."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(adds_eos)
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def flags(path: Path) -> tuple[bool, bool]:
    import gguf

    reader = gguf.GGUFReader(path)
    names = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
    return tuple(bool(reader.get_field(name).parts[-1][0]) for name in names)


class Taking:
    """Exports runs with a tool that writes .gguf files as the real one does."""

    def __init__(self, out: Path) -> None:
        self.out, self.said, self.calls, self.code = out, [], [], 0
        self.flags: dict[str, bool] = {}
        self.wrote: list[dict] | None = None
        self.cases: list[dict] = []
        self.prompt_code = 0

    def run_tool(self, name: str, *arguments: str) -> int:
        self.calls.append((name, *arguments))
        if name == "ollama_prompts":
            self.cases = json.loads(Path(arguments[-1]).read_text())
            return self.prompt_code
        self.out.mkdir(exist_ok=True)
        ending = ".gguf" if self.code == 0 else ".unproved.gguf"
        files = self.wrote or [{"label": "sft", "base": None, "file": "shop-F16"}]
        for one in files:
            write_gguf(self.out / f"{one['file']}{ending}", **self.flags)
        record = [
            {
                "kind": "F16", **one, "file": one["file"] + ending,
                "base": one["base"] and one["base"] + ending,
            }
            for one in files
        ]  # fmt: skip
        (self.out / "proof.json").write_text(json.dumps({"files": record}))
        return self.code

    def __call__(self, run: Path, **given) -> Path:
        wanted = Wanted(
            source=run, out=self.out, only=None, say=self.said.append, run_tool=self.run_tool, **given
        )  # fmt: skip
        assert export(wanted) == self.code
        return self.out


@pytest.fixture
def take(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Taking(tmp_path / "out")


def read(path: Path) -> list[tuple[str, str]]:
    """The lines of a Modelfile as Ollama's parser reads them: a value that begins with quotes goes
    on to the first line that ends with them.
    """
    found, lines = [], path.read_text("utf-8").split("\n")
    while lines:
        line = lines.pop(0)
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        for quotes in ('"""', '"'):
            if value.startswith(quotes):
                size = len(quotes)
                while len(value) < 2 * size or not value.endswith(quotes):
                    value += "\n" + lines.pop(0)
                value = value[size:-size]
                break
        found.append((name, value))
    return found


def write_data(run: Path, rows: list[list[dict]], **task) -> None:
    """The plan of a run, and its training data."""
    (run.parent / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    )
    (run / "plan.yaml").write_text(
        "version: 1\nname: shop\nmodel: org/base\ndata: {path: ../rows.jsonl}\n"
        "stages: [{name: sft, objective: sft, update: lora}]\n"
    )


def test_the_modelfile_of_a_result(tmp_path, take):
    """The proved file, the template as the model's own, and what ends an answer."""
    out = take(write_run(tmp_path / "run"), variant="Q8_0")
    (tool, *arguments) = take.calls[0]
    assert (tool, arguments[-2:]) == ("gguf", ["--kind", "Q8_0"])
    lines = read(out / "Modelfile")
    assert [line for line in lines if line[0] != "TEMPLATE"] == [
        ("FROM", "./shop-F16.gguf"),
        ("stop", "<|im_end|>"),
    ]
    text = dict(lines)["TEMPLATE"]
    assert written_by_ollama(text, QUESTION) == (
        "<|im_start|>system\nYou are Kit.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    said = "\n".join(take.said)
    assert "one whole model, the adapter merged into it" in said
    assert "ollama create shop -f " in said
    assert "Ollama is not installed here and has not run this" in said


def test_departments_share_one_base(tmp_path, take):
    """One base file, an adapter and a Modelfile for each task."""
    take.wrote = [
        {"label": "base", "base": None, "file": "shop-base-F16"},
        {"label": "legal", "base": "shop-base-F16", "file": "shop-legal-adapter"},
        {"label": "hr", "base": "shop-base-F16", "file": "shop-hr-adapter"},
    ]
    out = take(write_run(tmp_path / "run", tasks=("legal", "hr")))
    for task in ("legal", "hr"):
        lines = dict(read(out / f"{task}.Modelfile"))
        assert lines["FROM"] == "./shop-base-F16.gguf"
        assert lines["ADAPTER"] == f"./shop-{task}-adapter.gguf"
    assert "which all tasks share" in "\n".join(take.said)


@pytest.mark.parametrize("template", [CHATML, ZEPHYR, LLAMA_2])
@pytest.mark.parametrize("ends", [None, 0, 2, [0, 2]])
def test_no_end_token_is_missing(tmp_path, take, template, ends):
    """Whatever the model stops at, the tokenizer's end token, and what the template writes behind
    an answer, each once.
    """
    run = write_run(tmp_path / "run", template=template)
    write_tokenizer(run / "stages" / "sft", template, ends=ends)
    if ends is None:
        (run / "stages" / "sft" / "generation_config.json").unlink()
    out = take(run)
    found = [value for name, value in read(out / "Modelfile") if name == "stop"]
    wanted = {"<|im_end|>"} | ({"<|endoftext|>"} if ends in (0, [0, 2]) else set())
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_an_end_that_is_no_token_of_the_tokenizer_is_refused(tmp_path, take):
    """Answers of such a model would never stop."""
    run = write_run(tmp_path / "run")
    write_tokenizer(run / "stages" / "sft", ends=77)
    with pytest.raises(InputError, match="ends answers with token 77"):
        take(run)
    assert not take.calls


def test_turns_without_an_end_token_stop_at_the_next_speaker(tmp_path, take):
    """A text that begins the next question is a stop, beside the end token."""
    plain = (
        "{% for message in messages %}### {{ message['role'] }}\n{{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
    )
    out = take(write_run(tmp_path / "run", template=plain))
    stops = [value for name, value in read(out / "Modelfile") if name == "stop"]
    assert stops == ["<|im_end|>", "### user"]


@pytest.mark.parametrize("template", list(REFUSED.values()))
def test_a_template_that_ollama_cannot_write_is_refused_before_the_work(tmp_path, take, template):
    """With two ways out."""
    with pytest.raises(InputError, match="cannot be written for Ollama") as found:
        take(write_run(tmp_path / "run", template=template))
    assert "llama-server with --jinja" in found.value.faults[0].hint
    assert not take.calls


def test_no_template_is_no_chat(tmp_path, take):
    """A model of raw text is not given a template that it never saw."""
    with pytest.raises(InputError, match="has no chat template"):
        take(write_run(tmp_path / "run", template=None))


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_first_token_is_written_once(tmp_path, take, adds_bos):
    """By llama.cpp if the file says so, else by the template."""
    run = write_run(tmp_path / "run", template=LLAMA_2)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (run / "stages" / "sft" / "tokenizer_config.json").write_text(json.dumps(config))
    take.flags = {"adds_bos": adds_bos}
    text = dict(read(take(run) / "Modelfile"))["TEMPLATE"]
    own = "[INST] Hello [/INST]"
    assert written_by_ollama(text, QUESTION) == (own if adds_bos else "<|im_start|>" + own)
    assert flags(take.out / "shop-F16.gguf") == (adds_bos, False)


def test_tokens_that_the_training_never_saw_are_not_added(tmp_path, take):
    """The template writes no first token, and nothing ends a question: the flags are cleared, and
    that is said.
    """
    run = write_run(tmp_path / "run", template=ZEPHYR)
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (run / "stages" / "sft" / "tokenizer_config.json").write_text(json.dumps(config))
    take.flags = {"adds_bos": True, "adds_eos": True}
    out = take(run)
    assert flags(out / "shop-F16.gguf") == (False, False)
    said = "\n".join(take.said)
    said = re.sub(r"\s+", " ", said)
    assert "no longer puts <|endoftext|> in front" in said
    assert "no longer puts an end token behind a question" in said


SYSTEM = {"role": "system", "content": 'You are "Kit".\n\nBe brief.  '}
ROW = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("rows", "system", "said"),
    [
        ([[SYSTEM, *ROW], [SYSTEM, *ROW]], SYSTEM["content"], "the one system message"),
        ([[SYSTEM, *ROW], ROW], None, "no SYSTEM line: some rows"),
        ([ROW, ROW], None, ""),
        ([[{**SYSTEM, "content": 'a """ b'}, *ROW]], None, "no Modelfile keeps"),
    ],
)
def test_system_is_written_only_if_all_rows_had_the_same(tmp_path, take, rows, system, said):
    """Anything else would be a guess, and is said."""
    run = write_run(tmp_path / "run")
    write_data(run, rows)
    lines = dict(read(take(run) / "Modelfile"))
    assert lines.get("SYSTEM") == system
    text = re.sub(r"\s+", " ", "\n".join(take.said))
    assert said in text if said else "SYSTEM" not in text


def test_lost_data_are_said(tmp_path, take):
    """Whether there was one system message cannot be known then."""
    take(write_run(tmp_path / "run"))
    said = re.sub(r"\s+", " ", "\n".join(take.said))
    assert "the training data cannot be read any more" in said


@pytest.mark.parametrize(
    ("config", "seq_len", "expected"),
    [
        ({}, 512, []),
        ({}, 8192, [("num_ctx", "8192")]),
        ({"do_sample": False}, None, [("temperature", "0")]),
        (
            {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
            None,
            [("temperature", "0.7"), ("top_k", "20"), ("top_p", "0.8"), ("repeat_penalty", "1.05")],
        ),
    ],
)
def test_parameters_are_those_that_the_result_says(tmp_path, config, seq_len, expected):
    """Nothing is written that nobody chose."""
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    found = parameters(tmp_path, seq_len=seq_len)
    assert [(name, value) for name, value, _ in found] == expected
    assert all(why for _, _, why in found)


def test_llama_cpp_reads_the_prompts(tmp_path, take):
    """It gets conversations with the texts that Ollama writes; if it reads other tokens, no
    Modelfile is written.
    """
    run = write_run(tmp_path / "run", template=LLAMA_2)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (run / "stages" / "sft" / "tokenizer_config.json").write_text(json.dumps(config))
    take.flags = {"adds_bos": True}
    take.prompt_code = 5
    wanted = Wanted(source=run, out=take.out, only=None, say=print, run_tool=take.run_tool)
    assert export(wanted) == 5
    assert take.calls[-1][:2] == ("ollama_prompts", str(take.out / "shop-F16.gguf"))
    assert len(take.cases) == 8
    assert take.cases[0]["text"] == "[INST] Hello [/INST]"
    assert {case["messages"][0]["role"] for case in take.cases} == {"system", "user"}
    assert sorted(path.name for path in take.out.iterdir()) == ["proof.json", "shop-F16.gguf"]


def test_an_unproved_file_stays_one(tmp_path, take):
    """Exit code 4, and the Modelfile names the file as it is called; with llama.cpp it is written
    again.
    """
    take.code = 4
    run = write_run(tmp_path / "run")
    out = take(run)
    assert dict(read(out / "Modelfile"))["FROM"] == "./shop-F16.unproved.gguf"
    take.code = 0
    assert dict(read(take(run) / "Modelfile"))["FROM"] == "./shop-F16.gguf"
    with pytest.raises(InputError, match="already there"):
        take(run)


def test_a_failed_proof_leaves_no_modelfile(tmp_path, take):
    """What is not the model is not served."""
    take.code = 5
    out = take(write_run(tmp_path / "run"))
    assert not (out / "Modelfile").exists()


@pytest.mark.parametrize("text", ["a", "a b", " a ", 'say "x"', "a\nb", 'ends with "', '"', "\n"])
def test_values_come_back_from_a_modelfile(tmp_path, text):
    """Quotes, spaces and newlines."""
    assert can_hold(text)
    file = Modelfile(model="./m", template=text, stops=[(text, "why")], system=text)
    (tmp_path / "Modelfile").write_text(file.text(), "utf-8")
    assert read(tmp_path / "Modelfile") == [
        ("FROM", "./m"), ("TEMPLATE", text), ("stop", text), ("SYSTEM", text),
    ]  # fmt: skip


# --------------------------------------------------------------------------- Ollama itself


@pytest.fixture
def ollama(tmp_path, monkeypatch):
    """A server that answers as Ollama's does, and its program, which notes how it was called."""
    answers: dict = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            answers["asked"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answers["reply"]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_address[1]}")
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1 $2" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    yield answers
    server.shutdown()
    server.server_close()


def judged(run: Path) -> Path:
    """The run with a sample answer."""
    record = json.loads((run / "run.json").read_text())
    record["stages"][0]["evaluation"] = {
        "samples": [{"prompt": "Where is it?", "tuned": "On its way.", "tuned_stopped": True}]
    }
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [(" On its way.", "with the same text, and stops"), ("Lost.", "not with the text of the test")],
)
def test_where_ollama_is_installed_it_answers_itself(tmp_path, take, ollama, text, said):
    """The model is made under a name of its own, asked greedily, and removed."""
    ollama["reply"] = {"message": {"content": text}, "done_reason": "stop"}
    take(judged(write_run(tmp_path / "run")))
    assert said in re.sub(r"\s+", " ", "\n".join(take.said))
    assert ollama["asked"]["messages"] == [{"role": "user", "content": "Where is it?"}]
    assert ollama["asked"]["options"]["temperature"] == 0
    assert (tmp_path / "calls").read_text() == "create shop-sft-trial\nrm shop-sft-trial\n"


def test_an_answer_without_an_end_is_a_failure(tmp_path, take, ollama):
    """Exit code 5: nobody should serve it."""
    ollama["reply"] = {"message": {"content": "On and on"}, "done_reason": "length"}
    with pytest.raises(TrainingFailed, match="does not end"):
        take(judged(write_run(tmp_path / "run")))
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "rm shop-sft-trial"


@pytest.mark.parametrize("end", ['"""', 'x"""\nADAPTER ./evil', "\x1b[2J", "a\u202eb"])
def test_an_end_token_cannot_write_lines_of_a_modelfile(tmp_path, take, end):
    """Refused before the work; comments stay on one line."""
    run = write_run(tmp_path / "run")
    place = run / "stages" / "sft" / "tokenizer.json"
    state = json.loads(place.read_text("utf-8"))
    state["added_tokens"][2]["content"] = end
    place.write_text(json.dumps(state))
    with pytest.raises(InputError):
        take(run)
    assert not list(tmp_path.rglob("*Modelfile"))


def test_a_comment_of_a_modelfile_is_one_line():
    made = Modelfile(
        model="./m", template="t", stops=[("s", "why\nADAPTER a")], about=["a\nFROM b"]
    )
    assert [line for line in made.text().splitlines() if line.startswith(("FROM", "ADAPTER"))] == [
        "FROM ./m"
    ]
