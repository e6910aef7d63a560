"""`advise export RUN --to ollama`: the Modelfile, what stands in it and why, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from advisor.export.exporter import ExportRequest
from advisor.extras.gguf.ollama import Modelfile, export, parameters
from advisor.extras.gguf.template import can_hold
from advisor.ground.errors import InputError
from tests.export.runs import CHATML, write_run, write_tokenizer
from tests.extras.gguf.chat_templates import LLAMA_2, REFUSED, ZEPHYR
from tests.extras.gguf.go_reader import read_template

QUESTION = [{"role": "user", "content": "Hello"}]


class Taking:
    """Exports a run with a tool that writes files and proof.json as the real one does."""

    def __init__(self, folder: Path) -> None:
        self.out, self.run, self.said, self.calls = folder / "out", folder / "run", [], []
        self.code, self.labels, self.begins, self.proof = 0, ["sft"], False, {"faults": []}

    def run_tool(self, *arguments: str) -> int:
        self.calls.append(arguments)
        if self.code == 0:
            self.out.mkdir(exist_ok=True)
            parts = {label: f"-{label}" if len(self.labels) > 1 else "" for label in self.labels}
            files = [
                {"label": label, "file": f"shop{part}-F16.gguf", "begins": self.begins,
                 "proof": self.proof}
                for label, part in parts.items()
            ]  # fmt: skip
            for file in files:
                (self.out / file["file"]).write_bytes(b"GGUF")
            (self.out / "proof.json").write_text(json.dumps({"files": files}))
        return self.code

    def __call__(self, **given) -> list[tuple[str, str]]:
        """The lines of the Modelfile, if there is one."""
        wanted = ExportRequest(
            source=self.run, out=self.out, only=None, say=self.said.append,
            run_tool=self.run_tool, **given,
        )  # fmt: skip
        assert export(wanted) == self.code
        path = self.out / "Modelfile"
        return read(path) if path.exists() else []


@pytest.fixture
def take(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Taking(tmp_path)


# A value in quotes goes on to the closing ones at the end of a line.
LINE = re.compile(r'^(?:PARAMETER )?([^ #\n]+) (?:"""(.*?)"""|"(.*?)"|([^\n]*))$', re.M | re.S)


def read(path: Path) -> list[tuple[str, str]]:
    """Its lines as Ollama's parser reads them."""
    return [(name, "".join(values)) for name, *values in LINE.findall(path.read_text("utf-8"))]


def test_the_modelfile_of_a_result(take):
    """The file, the model's own template, and what ends an answer; there is no SYSTEM line."""
    write_run(take.run)
    lines = take(variant="Q8_0")
    tool, *arguments = take.calls[0]
    assert (tool, arguments[-2:]) == ("gguf.export", ["--kind", "Q8_0"])
    assert [line for line in lines if line[0] != "TEMPLATE"] == [
        ("FROM", "./shop-F16.gguf"), ("stop", "<|im_end|>"),
    ]  # fmt: skip
    assert read_template(dict(lines)["TEMPLATE"], QUESTION) == (
        "<|im_start|>system\nYou are Kit.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    said = " ".join(" ".join(take.said).split())
    assert "ollama create shop -f " in said
    assert "there is no SYSTEM line" in said


def test_each_department_has_its_own_modelfile(take):
    """Of a model of its own."""
    take.labels = ["legal", "hr"]
    write_run(take.run, tasks=("legal", "hr"))
    take()
    for task in ("legal", "hr"):
        assert ("FROM", f"./shop-{task}-F16.gguf") in read(take.out / f"{task}.Modelfile")
        assert f"  ask it:   ollama run shop-{task}" in take.said


# Turns without an end token: a text that begins the next question is a stop, beside the end token.
PLAIN = (
    "{% for message in messages %}### {{ message['role'] }}\n{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
)
END, OTHER = "<|im_end|>", "<|endoftext|>"


@pytest.mark.parametrize("template", [CHATML, ZEPHYR, LLAMA_2, PLAIN])
@pytest.mark.parametrize(
    ("ends", "stops"), [(None, {END}), (0, {END, OTHER}), (2, {END}), ([0, 2], {END, OTHER})]
)
def test_no_end_token_is_missing(take, template, ends, stops):
    """Each once: what the model stops at, the tokenizer's end, and what follows an answer."""
    stage = write_run(take.run, template=template) / "stages" / "sft"
    write_tokenizer(stage, template, ends=ends)
    if ends is None:
        (stage / "generation_config.json").unlink()
    found = [value for name, value in take() if name == "stop"]
    assert sorted(found) == sorted(stops | ({"### user"} if template is PLAIN else set()))


@pytest.mark.parametrize("template", list(REFUSED.values()))
def test_a_template_that_ollama_cannot_write_is_refused_before_the_work(take, template):
    """With two ways out."""
    write_run(take.run, template=template)
    with pytest.raises(InputError, match="cannot be written for Ollama") as found:
        take()
    assert "llama-server with --jinja" in found.value.faults[0].hint
    assert not take.calls


def test_a_result_that_cannot_chat_is_refused(take):
    """An end that is no token would never stop, and a model of raw text has no template."""
    write_tokenizer(write_run(take.run) / "stages" / "sft", ends=77)
    with pytest.raises(InputError, match="ends answers with token 77"):
        take()
    take.run = write_run(take.run.with_name("raw"), template=None)
    with pytest.raises(InputError, match="has no chat template"):
        take()
    assert not take.calls


@pytest.mark.parametrize("begins", [False, True])
def test_the_first_token_is_written_once(take, begins):
    """By llama.cpp if the file says so, else by the template."""
    stage = write_run(take.run, template=LLAMA_2) / "stages" / "sft"
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (stage / "tokenizer_config.json").write_text(json.dumps(config))
    take.begins = begins
    own = ("" if begins else "<|im_start|>") + "[INST] Hello [/INST]"
    assert read_template(dict(take())["TEMPLATE"], QUESTION) == own


@pytest.mark.parametrize(
    ("config", "seq_len", "expected"),
    [
        ({}, 512, []),
        ({}, 8192, [("num_ctx", "8192")]),
        ({"do_sample": False}, None, [("temperature", "0")]),
        ({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}, None,
         [("temperature", "0.7"), ("top_k", "20"), ("top_p", "0.8"), ("repeat_penalty", "1.05")]),
    ],
)  # fmt: skip
def test_parameters_are_those_that_the_result_says(tmp_path, config, seq_len, expected):
    """Nothing is written that nobody chose."""
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    found = parameters(tmp_path, seq_len=seq_len)
    assert [(name, value) for name, value, _ in found] == expected
    assert all(why for _, _, why in found)


@pytest.mark.parametrize("code", [0, 4, 5])
def test_a_file_that_was_not_compared_is_written_again(take, code):
    """What could not be written or differs has no Modelfile: what is not the model is not served.
    With llama.cpp there is a proof; then nothing is overwritten.
    """
    write_run(take.run)
    take.code, take.proof = code, None
    assert take()[:1] == ([("FROM", "./shop-F16.gguf")] if code == 0 else [])
    take.code, take.proof = 0, {"faults": []}
    take()
    with pytest.raises(InputError, match="already there"):
        take()


@pytest.mark.parametrize("text", ["a", "a b", " a ", 'say "x"', "a\nb", 'ends with "', '"', "\n"])
def test_values_come_back_from_a_modelfile(tmp_path, text):
    """Quotes, spaces and newlines."""
    assert can_hold(text)
    file = Modelfile(model="./m", template=text, stops={text: "why"}).text()
    (tmp_path / "Modelfile").write_text(file, "utf-8")
    assert read(tmp_path / "Modelfile") == [
        ("FROM", "./m"), ("TEMPLATE", text), ("stop", text),
    ]  # fmt: skip


@pytest.mark.parametrize("end", ['"""', 'x"""\nADAPTER ./evil', "\x1b[2J", "a\u202eb"])
def test_an_end_token_cannot_write_lines_of_a_modelfile(take, end):
    """Refused before the work; comments stay on one line."""
    place = write_run(take.run) / "stages" / "sft" / "tokenizer.json"
    state = json.loads(place.read_text("utf-8"))
    state["added_tokens"][2]["content"] = end
    place.write_text(json.dumps(state))
    with pytest.raises(InputError):
        take()
    assert not list(take.out.parent.rglob("*Modelfile"))
    made = Modelfile(model="./m", template="t", stops={"s": "a\nADAPTER b"}, about="a\nFROM b")
    lines = [line for line in made.text().splitlines() if line.startswith(("FROM", "ADAPTER"))]
    assert lines == ["FROM ./m"]
