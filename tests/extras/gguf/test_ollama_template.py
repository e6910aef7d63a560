"""A model's chat template as Ollama's: the same text for every conversation, or refused."""

import datetime
import json
import os
import random
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
from advisor.extras.gguf.template import (
    NotExpressible,
    OllamaTemplate,
    check,
    conversations,
    go_string,
    go_template,
    go_text,
    ollama_template,
    written_by_ollama,
)
from tests.extras.gguf.chat_templates import REFUSED, STYLES
from tests.extras.gguf.go_reader import read_template

TODAY = datetime.date(2026, 1, 2)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def made(source: str, **given) -> tuple[ChatText, OllamaTemplate]:
    chat = ChatText(source, TOKENS)
    return chat, ollama_template(chat, today=TODAY, **given)


ALL = {name: made(source) for name, source in STYLES.items()}


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
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
    turns = said(
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
    turns = said(("u", "Name two."), ("a", "One is"))
    text = read_template(go_template(ours.shape), turns)
    assert text.endswith("One is")
    assert chat.write(turns, prompt=False).startswith(text)


def test_the_first_token_is_left_to_llama_cpp():
    """Where the file makes it put one in front, the template does not write it too. A base model
    without a template gets one that Ollama can write.
    """
    text = go_template(ALL["llama_2"][1].shape.without("<s>"))
    turns = said(("u", "a"), ("a", "b"), ("u", "c"))
    assert read_template(text, turns) == "[INST] a [/INST] b </s><s>[INST] c [/INST]"
    plain = go_template(made("{{ bos_token }}" + PLAIN_TEMPLATE)[1].shape)
    assert read_template(plain, said(("u", "Hello"))) == "<s>User: Hello\n\nAssistant:"


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


@pytest.mark.parametrize("why", REFUSED)
def test_a_template_that_no_fixed_texts_make_is_refused(why):
    """With the reason."""
    with pytest.raises(NotExpressible, match=why):
        made(REFUSED[why])


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
    """From `.Thinking` between its marks Ollama learns how this model marks its thoughts. Its `think`
    does not switch them; that is said, unless the plan gives the argument.
    """
    chat, ours = ALL["thinking"]
    asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    own = chat.write([asked, {**said, "reasoning_content": "hm"}], prompt=False)
    text = go_template(ours.shape)
    assert own.startswith(read_template(text, [asked, {**said, "thinking": "hm"}]))
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
    assert read_template(code, []) == text
    assert '"""' not in code
    assert all(character in "\n\t " or character.isprintable() for character in code)


def test_texts_in_quotes_are_as_go_writes_them():
    """Escapes by the language's specification, not by ours."""
    assert go_string('a"\\\n\u200b😀\x07') == '"a\\"\\\\\\n\\u200b😀\\u0007"'
    assert go_string("\U000e0001") == '"\\U000e0001"'


# -------------------------------------------------------------------------- in Go itself


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
    """For every template that can be expressed: random conversations, answers to be continued. Needs
    a Go toolchain on PATH (Debian: golang-go).
    """
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
