"""A model's chat template as Ollama's: the same text for every conversation, or refused."""

from __future__ import annotations

import datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.data.chat_text import ChatText
from advisor.data.template_messages import PLAIN_TEMPLATE
from advisor.export.ollama.compare import check
from advisor.export.ollama.go_reader import NotOurs, written_by_ollama
from advisor.export.ollama.go_template import go_string, go_text
from advisor.export.ollama.shape import CONTINUED, NotExpressible
from advisor.export.ollama.template import OllamaTemplate, ollama_template
from tests.export.chat_templates import REFUSED, STYLES

TODAY = datetime.date(2026, 1, 2)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def made(source: str, **given) -> tuple[ChatText, OllamaTemplate]:
    chat = ChatText.of(source, TOKENS)
    return chat, ollama_template(chat, today=TODAY, **given)


ALL = {name: made(source) for name, source in STYLES.items()}
WORDS = st.text(min_size=1, max_size=40).map(lambda text: f"x{text}x")
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=4)


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=25, deadline=None)
@given(system=st.none() | WORDS, pairs=PAIRS, question=WORDS)
def test_the_text_is_that_of_the_models_own_template(name, system, pairs, question):
    """Whatever people write: braces, quotes, marks of templates, any character."""
    chat, ours = ALL[name]
    turns = [{"role": "system", "content": system}] if system and ours.shape.system else []
    for asked, answered in pairs:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    turns.append({"role": "user", "content": question})
    assert written_by_ollama(ours.text, turns) == chat.as_trained(turns, prompt=True)


@pytest.mark.parametrize("name", ["chatml", "llama_3", "mistral", "thinking"])
def test_an_answer_can_be_continued(name):
    """A last message of the assistant is open: nothing ends it."""
    chat, ours = ALL[name]
    turns = [{"role": "user", "content": "Name two."}, {"role": "assistant", "content": "One is"}]
    text = written_by_ollama(ours.text, turns)
    assert text.endswith("One is")
    assert chat.write(turns, prompt=False).startswith(text)


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize(
    "names",
    [("llama3_2", "qwen2_5", "gemma", "qwen3"), pytest.param(("*",), marks=pytest.mark.long)],
    ids=["four", "all"],
)
def test_the_templates_of_real_families_come_out_alike(names):
    """Of TRL's copies all are expressed but those that take messages in parts, for pictures."""
    import trl

    refused = set()
    folder = Path(trl.__file__).parent / "chat_templates"
    files = sorted(path for name in names for path in folder.glob(f"{name}.jinja"))
    for path in files:
        chat = ChatText.of(path.read_text("utf-8"), TOKENS)
        try:
            found = ollama_template(chat, begins_with="<s>", today=TODAY)
        except NotExpressible:
            refused.add(path.stem)
        else:
            assert found.compared >= 200
    assert len(files) >= (4 if len(names) == 4 else 60)
    assert {name.removesuffix("_training") for name in refused} <= {
        "idefics3", "llava_next", "smolvlm",
    }  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_a_template_that_no_fixed_texts_make_is_refused(why):
    """With the reason."""
    with pytest.raises(NotExpressible, match=why):
        made(REFUSED[why])


def test_a_wrong_template_is_found():
    """The comparison would see one changed character."""
    chat, ours = ALL["chatml"]
    wrong = ours.text.replace("<|im_end|>\n{{ if $last }}", "<|im_end|>{{ if $last }}")
    assert wrong != ours.text
    with pytest.raises(NotExpressible, match="by the model's template and as"):
        check(wrong, ours.shape, chat.as_trained)


def test_the_first_token_is_left_to_ollama():
    """Where the model file makes Ollama put it in front, the template does not write it too."""
    _, ours = made(STYLES["llama_2"], begins_with="<s>")
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert written_by_ollama(ours.text, turns) == "[INST] a [/INST] b </s><s>[INST] c [/INST]"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama_3", "removes white space around system messages, questions and earlier answers"),
        ("no_system", "leaves system messages out"),
        ("dated", "writes the day's date; Ollama's always writes 2026-01-02"),
        ("tools", "calls of functions are not in this template"),
    ],
)
def test_what_is_lost_is_said(name, said):
    """Each in a sentence; nothing else is."""
    (found,) = ALL[name][1].lost
    assert said in found


def test_nothing_is_lost_of_a_plain_style():
    """No sentence where there is nothing to say."""
    assert not ALL["chatml"][1].lost


def test_thoughts_are_switched_as_the_template_does_it():
    """Ollama's `think` is the template's enable_thinking; a plan that gives the argument leaves no
    switch.
    """
    chat, ours = ALL["thinking"]
    turns = [{"role": "user", "content": "a"}]
    for think in (True, False):
        own = chat.write(turns, prompt=True, enable_thinking=think)
        assert written_by_ollama(ours.text, turns, think=think) == own
    _, fixed = made(STYLES["thinking"], fixed=["enable_thinking"])
    assert "IsThinkSet" in ours.text
    assert "IsThinkSet" not in fixed.text


def test_thoughts_of_an_answer_to_be_continued_are_marked():
    """From `.Thinking` between its marks Ollama learns how this model marks its thoughts."""
    chat, ours = ALL["thinking"]
    asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    own = chat.write([asked, {**said, "reasoning_content": "hm"}], prompt=False)
    assert own.startswith(written_by_ollama(ours.text, [asked, {**said, "thinking": "hm"}]))
    assert "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}" in ours.text


def test_a_stripped_continuation_is_known():
    """Some templates remove newlines in front of the last answer alone."""
    assert CONTINUED in ALL["thinking"][1].shape.strips


def test_the_plain_template_of_the_trainers_can_be_served():
    """A base model without a template gets one that Ollama can write."""
    _, ours = made("{{ bos_token }}" + PLAIN_TEMPLATE)
    turns = [{"role": "user", "content": "Hello"}]
    assert written_by_ollama(ours.text, turns) == "<s>User: Hello\n\nAssistant:"


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_fixed_texts_come_back(text):
    """Whatever a template writes itself; what a Modelfile would lose is in code."""
    code = go_text(text)
    assert written_by_ollama(code, []) == text
    assert '"""' not in code
    assert all(character in "\n\t " or character.isprintable() for character in code)


def test_texts_in_quotes_are_as_go_writes_them():
    """Escapes by the language's specification, not by ours."""
    assert go_string('a"\\\n\u200b😀\x07') == '"a\\"\\\\\\n\\u200b😀\\u0007"'
    assert go_string("\U000e0001") == '"\\U000e0001"'


@pytest.mark.parametrize(
    "text", ["{{ end }}", "{{ if .System }}x", "{{ len }}x", "{{ $x }}", "{{ a"]
)
def test_the_reader_refuses_what_it_does_not_know(text):
    """It never guesses what Go would do."""
    with pytest.raises((NotOurs, TypeError)):
        written_by_ollama(text, [])
