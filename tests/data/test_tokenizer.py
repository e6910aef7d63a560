"""The model's own tokenizer and chat template, with a tokenizer made here: one token a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from advisor.commands.check import check_data
from advisor.commands.options import CheckOptions
from advisor.data.templates import tokenizer as module
from advisor.data.templates.tokenizer import model_tokenizer

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|>\n{% endfor"
    " %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
NO_USER = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ raise_exception('Users not supported')"
    " }}{% endif %}{{ m['content'] }} <|im_end|>{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not"
    " supported') }}{% endif %}{{ m['content'] }} <|im_end|>{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }} <|im_end|>{% endif"
    " %}{% endfor %}"
)
HIDES = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }} <|im_end|>{% endif %}{%"
    " endfor %}"
)
ENDLESS = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}\n{% endfor %}"
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    " <|im_end|>{% endgeneration %}{% else %}{{ m['content'] }} <|im_end|>{% endif %}{% endfor %}"
)


def model(folder: Path, template: str | None) -> str:
    """A model folder with a tokenizer of one token a word."""
    where = folder / "model"
    where.mkdir()
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(where / "tokenizer.json"))
    (where / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "eos_token": {"content": "<|im_end|>"},
                **({"chat_template": template} if template else {}),
            }
        )
    )
    return str(where)


def data(folder: Path, *, system: bool = False, count: int = 60) -> str:
    """Conversations of one question of four words and one answer of five."""
    rows = []
    for number in range(count):
        turns = [
            {"role": "user", "content": f"What is number {number}?"},
            {"role": "assistant", "content": f"That is the number {number}."},
        ]
        rows.append(
            {"messages": [{"role": "system", "content": "Be kind."}, *turns] if system else turns}
        )
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def findings(folder: Path, template: str | None, **options: bool) -> dict[str, tuple[str, int]]:
    found, _ = check_data(
        data(folder, **options), CheckOptions(model=model(folder, template), full=True)
    )
    return {finding.id: (finding.severity, finding.count) for finding in found.findings}


def test_lengths_are_those_of_the_rendered_conversation(tmp_path):
    """Each turn costs its words and three of the template: 4 + 3 and 5 + 3 tokens."""
    found, _ = check_data(data(tmp_path), CheckOptions(model=model(tmp_path, CHATML), full=True))
    assert found.tokens is not None
    assert (found.tokens.p50, found.tokens.longest, found.tokens.total) == (15, 15, 15 * 60)
    assert found.tokens.counted_by.startswith("tokenizer of ")
    # The request is the question's turn and the opening of the answer.
    assert found.measures["request_tokens"]["p50"] == 7 + 2
    assert found.findings == ()


@pytest.mark.parametrize("template", [CHATML, GENERATION])
def test_a_fitting_template_says_nothing(tmp_path, template):
    """A template that takes every row, with or without generation tags, is no finding."""
    assert findings(tmp_path, template) == {}


def test_rows_that_the_template_refuses_block_training(tmp_path):
    """Turns that the template does not take stop the run before it begins, in the template's own
    words.
    """
    found, _ = check_data(
        data(tmp_path, system=True), CheckOptions(model=model(tmp_path, NO_USER), full=True)
    )
    refused = next(finding for finding in found.findings if finding.id == "template-refuses-rows")
    assert (refused.severity, refused.count, refused.rows[:2]) == ("error", 60, (1, 2))
    assert "Users not supported" in refused.text
    assert found.objectives == ()


def test_a_template_without_system_turns_gets_the_text_in_the_question_as_in_training(tmp_path):
    """The trainers put it there, so nothing is refused: it is said, and the lengths are those of
    the rows as they will be trained.
    """
    found, _ = check_data(
        data(tmp_path, system=True), CheckOptions(model=model(tmp_path, NO_SYSTEM), full=True)
    )
    assert {finding.id: (finding.severity, finding.count) for finding in found.findings} == {
        "template-without-system-turn": ("note", 60)
    }
    assert found.objectives
    assert found.tokens is not None
    assert found.tokens.p50 == (2 + 4 + 1) + (5 + 1)


def test_a_template_that_drops_the_system_text_is_a_warning(tmp_path):
    """What the model would never see is counted."""
    assert findings(tmp_path, DROPS_SYSTEM, system=True)["template-drops-system-text"] == (
        "warning",
        60,
    )


def test_a_template_that_leaves_the_answer_out_is_an_error(tmp_path):
    """Without the answer in the text there is nothing to learn."""
    assert findings(tmp_path, HIDES)["template-hides-answers"] == ("error", 60)


def test_a_template_without_an_end_of_turn_is_said(tmp_path):
    """A model that never sees the end of a turn never stops: the trainers add the token, and the
    check says so.
    """
    assert findings(tmp_path, ENDLESS)["template-without-end-of-turn"] == ("note", 60)


def test_a_model_without_a_template_is_said_for_conversations(tmp_path):
    """A base model has none."""
    assert findings(tmp_path, None)["model-without-chat-template"] == ("warning", 60)


def test_a_missing_tokenizer_is_said_and_lengths_are_approximated(tmp_path):
    """The page names what counted."""
    found, _ = check_data(data(tmp_path), CheckOptions(model="nobody/nothing"))
    assert found.tokens is not None
    assert "approximation" in found.tokens.counted_by
    assert "no folder with a tokenizer.json" in next(
        finding.text for finding in found.findings if finding.id == "tokenizer-not-at-hand"
    )


@pytest.mark.parametrize(
    ("missing", "says"),
    [("tokenizers", "tokenizers package is not installed"), ("jinja2", "jinja2 is not installed")],
)
def test_a_missing_package_is_said(tmp_path, monkeypatch, missing, says):
    """The core install has neither; the note has the line to install."""
    from importlib.util import find_spec

    folder = model(tmp_path, CHATML)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else find_spec(name)
    )
    assert says in model_tokenizer(folder)[1]


def test_a_damaged_tokenizer_or_template_is_said(tmp_path):
    """Neither ends in a traceback."""
    folder = Path(model(tmp_path, "{% for m in messages %}"))
    assert "is broken" in model_tokenizer(str(folder))[1]
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be read" in model_tokenizer(str(folder))[1]


def test_a_template_cannot_reach_the_machine(tmp_path):
    """Templates run in a sandbox: what looks for Python's insides is refused, not run."""
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    assert findings(tmp_path, evil)["template-refuses-rows"][0] == "error"


def test_a_model_of_the_hub_cache_is_found(tmp_path, monkeypatch):
    """A hub id is looked up in the cache, never fetched."""
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert module._folder("a/b") == snapshot


THINKS = (
    "{% for m in messages %}{{ m.content }} <|im_end|>{% endfor %}{% if add_generation_prompt %}"
    "Answer:{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)


def thinking(folder: Path, template: str, answer: str, **arguments: bool) -> dict[str, str]:
    """Finding -> its text, for sixty rows with this answer."""
    path = folder / "a.jsonl"
    rows = [{"prompt": f"What is {n}?", "completion": f"{answer} {n}"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = model(folder, template)
    template_arguments = tuple(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    found, _ = check_data(
        str(path), CheckOptions(model=name, full=True, template=template_arguments)
    )
    return {finding.id: finding.text for finding in found.findings}


def test_a_thinking_model_on_data_without_thoughts_is_a_warning(tmp_path):
    """It names the argument that switches the thoughts off; with it there is nothing to say."""
    found = thinking(tmp_path, THINKS, "It is")
    assert "Write `template: {enable_thinking: false}` into the plan" in found["no-thoughts"]
    shutil.rmtree(tmp_path / "model")
    assert "no-thoughts" not in thinking(tmp_path, THINKS, "It is", enable_thinking=False)


@pytest.mark.parametrize(
    ("template", "answer", "arguments", "finding"),
    [
        (THINKS, "<think>One.</think>It is", {}, None),
        (THINKS, "<think>One.</think>It is", {"enable_thinking": False}, "thoughts-switched-off"),
        (CHATML, "<think>One.</think>It is", {}, "thoughts-unknown"),
        (CHATML, "It is", {}, None),
        (CHATML, "It is", {"enable_thinking": False}, "template-argument-unknown"),
        (THINKS.replace("not enable", "enable"), "It is", {}, None),  # thinks if it is told to
    ],
)
def test_thoughts_of_data_and_model_are_compared(tmp_path, template, answer, arguments, finding):
    """Each way to disagree has its finding, and agreement has none."""
    found = thinking(tmp_path, template, answer, **arguments)
    ids = {name for name in found if "thoughts" in name or "template-argument" in name}
    assert ids == ({finding} if finding else set())
