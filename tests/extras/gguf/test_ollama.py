"""`advise export --to ollama`: the Modelfile and why, refusals, and templates of the same text."""

import datetime
import json
import os
import random
import re
import shutil
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.data.templates.chat_text import PLAIN_TEMPLATE, ChatText
from advisor.export.exporter import ExportRequest
from advisor.extras.gguf.ollama import Modelfile, export, parameters
from advisor.extras.gguf.template import (
    NotExpressible,
    OllamaTemplate,
    can_hold,
    check,
    conversations,
    go_string,
    go_template,
    go_text,
    ollama_template,
    written_by_ollama,
)
from advisor.ground.errors import InputError
from tests.export.runs import CHATML, write_run, write_tokenizer
from tests.extras.gguf.go_reader import read_template

ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}"
    "\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system is defined %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ message['content'] | trim }} [/INST]{% else %} {{ message['content'] | trim }} {{ eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DATED = (
    "{{ bos_token }}<|system|>{{ strftime_now('%d %b %Y') }}\n{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}<|end|>"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system message stands in the last question.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {% if system is defined and (loop.last or"
    " (loop.revindex == 2 and messages[-1]['role'] == 'assistant')) %}{{ system }}\n\n{% endif %}"
    "{{ message['content'] }}[/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages if message['role'] != 'system' %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Thinks unless it is told not to; earlier answers lose their thoughts.
THINKING = (
    "{% set places = namespace(last=0) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set places.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set words = message.content %}{% set thoughts = message.reasoning_content or '' %}"
    "{% if '</think>' in words %}{% set thoughts = words.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > places.last %}<think>\n{{ thoughts }}\n</think>\n\n{{ words.lstrip('\n') }}"
    "{% else %}{{ words }}{% endif %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# Braces, quotes and characters that no Modelfile holds.
ODD = (
    '{{ bos_token }}{% for message in messages %}{{ "{{" }}{{ message.role }}{{ "}}" }}"""\u00a0{{ \'{\' }}'
    "{{ message.content }}{{ '}' }}\u200b\r\n{% endfor %}{% if add_generation_prompt %}"
    "{{ '{{' }}assistant{{ '}}' }}\"\"\"\u00a0{{ '{' }}{% endif %}"
)

STYLES = {
    "chatml": CHATML, "zephyr": ZEPHYR, "llama_2": LLAMA_2, "llama_3": LLAMA_3, "dated": DATED,
    "gemma": GEMMA, "no_system": NO_SYSTEM, "thinking": THINKING, "odd": ODD,
    "tools": ("{% if tools %}{{ tools | tojson }}{% endif %}" + ZEPHYR),
}  # fmt: skip

# A template that no fixed texts make, and why.
REFUSED = {
    "leaves words out": "{% for message in messages %}{{ message['role'] }}{% endfor %}",
    "depending on how many": (
        "{% for message in messages %}<{{ loop.index }}>{{ message['content'] }}{% endfor %}"
    ),
    "in another order": MISTRAL,
    "refuses a plain conversation": "{{ raise_exception('never') }}",
    "comes out as": (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | replace('Hello', 'Bye') }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
}


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
    write_run(take.run, tasks=take.labels)
    take()
    for task in take.labels:
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


def test_a_result_that_cannot_chat_or_be_written_is_refused_before_the_work(take):
    """An end that is no token would never stop; a template Ollama cannot write has a way out."""
    write_tokenizer(write_run(take.run) / "stages" / "sft", ends=77)
    with pytest.raises(InputError, match="ends answers with token 77"):
        take()
    take.run = write_run(take.run.with_name("raw"), template=None)
    with pytest.raises(InputError, match="has no chat template"):
        take()
    take.run = write_run(take.run.with_name("mistral"), template=REFUSED["in another order"])
    with pytest.raises(InputError, match="cannot be written for Ollama") as found:
        take()
    assert "llama-server with --jinja" in found.value.faults[0].hint
    assert not take.calls


@pytest.mark.parametrize(("begins", "first"), [(False, "<|im_start|>"), (True, "")])
def test_the_first_token_is_written_once(take, begins, first):
    """By llama.cpp if the file says so, else by the template."""
    stage = write_run(take.run, template=LLAMA_2) / "stages" / "sft"
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (stage / "tokenizer_config.json").write_text(json.dumps(config))
    take.begins = begins
    assert read_template(dict(take())["TEMPLATE"], QUESTION) == f"{first}[INST] Hello [/INST]"


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
    """What is not the model is not served; what llama.cpp proved is not overwritten."""
    write_run(take.run)
    take.code, take.proof = code, None
    assert take()[:1] == ([("FROM", "./shop-F16.gguf")] if code == 0 else [])
    take.said.clear()
    take.code = 5
    take(variant="Q6_K")
    assert not take.said  # Ollama makes no such type
    take(variant="Q4_K_M")
    assert take.said[1].endswith(f" --to ollama --out {take.out}")
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


TODAY = datetime.date(2026, 1, 2)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def made(source: str, **given) -> tuple[ChatText, OllamaTemplate]:
    chat = ChatText(source, TOKENS)
    return chat, ollama_template(chat, today=TODAY, **given)


ALL = {name: made(source) for name, source in STYLES.items()}


def spoken(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Messages of roles by their first letter and texts."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": text} for role, text in turns]


WORDS = st.text(min_size=1, max_size=40).map(lambda text: f"x{text}x")
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=4)


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=25, deadline=None)
@given(system=st.none() | WORDS, pairs=PAIRS, question=WORDS)
def test_the_text_is_that_of_the_models_own_template(name, system, pairs, question):
    """Whatever people write: braces, quotes, marks of templates, any character."""
    chat, ours = ALL[name]
    first = [("s", system)] if system and ours.shape.system else []
    turns = spoken(
        *first, *(turn for pair in pairs for turn in zip("ua", pair, strict=True)), ("u", question)
    )
    own = chat.as_trained(turns, prompt=True)
    assert written_by_ollama(ours.shape, turns) == own
    assert read_template(go_template(ours.shape), turns) == own


@pytest.mark.parametrize("name", STYLES)
def test_a_template_writes_what_was_compared(name):
    """Questions in a row, an answer first or last, a first token that llama.cpp adds."""
    shape, chance = ALL[name][1].shape.without("<s>"), random.Random(name)
    text = go_template(shape)
    for turns in islice(conversations(shape, chance), 50):
        role = chance.choice(("system", "user", "assistant"))
        mixed = [*turns, {"role": role, "content": "more"}]
        chance.shuffle(mixed)
        for one in (turns, mixed):
            assert read_template(text, one) == written_by_ollama(shape, one), one


@pytest.mark.parametrize("name", ["chatml", "llama_3"])
def test_an_answer_can_be_continued(name):
    """A last message of the assistant is open: nothing ends it."""
    chat, ours = ALL[name]
    turns = spoken(("u", "Name two."), ("a", "One is"))
    text = read_template(go_template(ours.shape), turns)
    assert text.endswith("One is")
    assert chat.write(turns, prompt=False).startswith(text)


def test_the_first_token_is_left_to_llama_cpp():
    """A template does not repeat the file's first token; a base model gets a plain template."""
    text = go_template(ALL["llama_2"][1].shape.without("<s>"))
    turns = spoken(("u", "a"), ("a", "b"), ("u", "c"))
    assert read_template(text, turns) == "[INST] a [/INST] b </s><s>[INST] c [/INST]"
    plain = go_template(made("{{ bos_token }}" + PLAIN_TEMPLATE)[1].shape)
    assert read_template(plain, spoken(("u", "Hello"))) == "<s>User: Hello\n\nAssistant:"


def real_templates(*names: str) -> dict[str, str]:
    """Those of real families that TRL carries; without TRL none."""
    found = find_spec("trl")
    folders = found.submodule_search_locations if found else ()
    files = [path for name in names for place in folders
             for path in Path(place, "chat_templates").glob(f"{name}.jinja")]  # fmt: skip
    return {path.stem: path.read_text("utf-8") for path in sorted(files)}


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize(
    ("names", "least"),
    [(("llama3_2", "qwen2_5", "gemma", "qwen3"), 4), pytest.param(("*",), 60, marks=pytest.mark.long)],
    ids=["four", "all"],
)  # fmt: skip
def test_the_templates_of_real_families_come_out_alike(names, least):
    """Of TRL's copies all are expressed but those that take messages in parts, for pictures."""
    sources, refused = real_templates(*names), set()
    assert len(sources) >= least
    for name, source in sources.items():
        try:
            assert made(source)[1].compared >= 200
        except NotExpressible:
            refused.add(name.removesuffix("_training"))
    assert refused <= {"idefics3", "llava_next", "smolvlm"}


@pytest.mark.parametrize(("why", "source"), REFUSED.items())
def test_a_template_that_no_fixed_texts_make_is_refused(why, source):
    """With the reason."""
    with pytest.raises(NotExpressible, match=why):
        made(source)


def test_a_wrong_text_is_found():
    """The comparison would see one changed character."""
    chat, ours = ALL["chatml"]
    wrong = replace(ours.shape, asked=ours.shape.asked.replace("<|im_end|>\n", "<|im_end|>"))
    assert wrong != ours.shape
    with pytest.raises(NotExpressible, match="by the model's template and as"):
        check(wrong, chat.as_trained)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama_3", "removes white space around system messages, questions and earlier answers"),
        ("no_system", "leaves system messages out"),
        ("dated", "writes the day's date; Ollama's always writes 2026-01-02"),
        ("tools", "calls of functions are not in this template"),
    ],
)
def test_what_is_lost_is_said(name, words):
    """Each in a sentence; nothing else is."""
    (found,) = ALL[name][1].lost
    assert words in found
    assert not ALL["chatml"][1].lost


def test_thoughts_of_an_answer_are_marked():
    """Ollama learns the marks from `.Thinking`; `think` cannot switch them, which is said."""
    chat, ours = ALL["thinking"]
    asked, spoken = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    own = chat.write([asked, {**spoken, "reasoning_content": "hm"}], prompt=False)
    text = go_template(ours.shape)
    assert own.startswith(read_template(text, [asked, {**spoken, "thinking": "hm"}]))
    assert "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}" in text
    assert ".Thinking" not in go_template(ALL["chatml"][1].shape)
    _, fixed = made(STYLES["thinking"], fixed=["enable_thinking"])
    assert "cannot be switched" in "\n".join(ours.lost)
    assert "cannot be switched" not in "\n".join(fixed.lost)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_fixed_texts_come_back(text):
    """Whatever a template writes itself; what a Modelfile would lose is in code."""
    code = go_text(text)
    assert (read_template(code, []), '"""' in code) == (text, False)
    assert all(character in "\n\t " or character.isprintable() for character in code)


@pytest.mark.parametrize(
    ("text", "written"),
    [('a"\\\n\u200b😀\x07', '"a\\"\\\\\\n\\u200b😀\\u0007"'), ("\U000e0001", '"\\U000e0001"')],
)
def test_texts_in_quotes_are_as_go_writes_them(text, written):
    """Escapes by the language's specification, not by ours."""
    assert go_string(text) == written


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """Conversations -> their texts by Go."""
    program = tmp_path_factory.mktemp("go") / "ollama_text"
    environment = {**os.environ, "GOCACHE": str(program.parent / "cache"), "GO111MODULE": "off"}
    source = Path(__file__).with_name("ollama_text.go")
    subprocess.run(["go", "build", "-o", program, source], check=True, env=environment)

    def texts(requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return texts


@pytest.mark.long
@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go toolchain on PATH")
def test_go_writes_what_was_compared(go):
    """Random conversations in every template, by a Go toolchain on PATH (Debian: golang-go)."""
    requests, expected, names = [], [], set()
    for name, source in (STYLES | real_templates("*")).items():
        with suppress(NotExpressible):
            shape = made(source)[1].shape
            names.add(name)
            for turns in islice(conversations(shape, random.Random(name)), 40):
                for one in (turns, [*turns, {"role": "assistant", "content": "yes"}]):
                    requests.append({"template": go_template(shape), "messages": one})
                    expected.append(written_by_ollama(shape, one))
    assert len(names) >= len(STYLES)
    for request, theirs, own in zip(requests, go(requests), expected, strict=True):
        assert theirs == own, request
