"""The model's own tokenizer and chat template, with a tokenizer made here: one token a word."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from advisor.commands.check import check_data
from advisor.commands.options import CheckOptions
from advisor.data.templates import tokenizer as module
from advisor.data.templates.tokenizer import model_tokenizer
from tests.data.conftest import jsonl

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")


def each_turn(text: str) -> str:
    """A template that writes this of each turn."""
    return "{% for m in messages %}" + text + "{% endfor %}"


def refusing(role: str, said: str) -> str:
    """A template that takes no turn of this role."""
    refused = f"{{% if m['role'] == '{role}' %}}{{{{ raise_exception('{said}') }}}}{{% endif %}}"
    return each_turn(refused + TURN)


TURN = "{{ m['content'] }} <|im_end|>"
CHATML = each_turn("<|im_start|> {{ m['role'] }} " + TURN + "\n") + (
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
GENERATION = each_turn(
    "{% if m['role'] == 'assistant' %}{% generation %}" + TURN + "{% endgeneration %}"
    "{% else %}" + TURN + "{% endif %}"
)


def model(folder: Path, template: str | None) -> str:
    """A model folder with a tokenizer of one token a word."""
    where = folder / "model"
    where.mkdir(exist_ok=True)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(where / "tokenizer.json"))
    config = {"eos_token": {"content": "<|im_end|>"}}
    if template:
        config["chat_template"] = template
    (where / "tokenizer_config.json").write_text(json.dumps(config))
    return str(where)


def data(folder: Path, *, system: bool = False) -> str:
    """Sixty conversations of one question of four words and one answer of five."""
    first = [("system", "Be kind.")] if system else []
    rows = [
        [*first, ("user", f"What is number {n}?"), ("assistant", f"That is the number {n}.")]
        for n in range(60)
    ]
    turns = [[{"role": role, "content": text} for role, text in row] for row in rows]
    return str(jsonl(folder, [{"messages": row} for row in turns]))


def checked(folder: Path, template: str | None, *, system: bool = False):
    """The profile with this model."""
    options = CheckOptions(model=model(folder, template), full=True)
    return check_data(data(folder, system=system), options)[0]


def test_lengths_are_those_of_the_rendered_conversation(tmp_path):
    """Each turn costs its words and three of the template: 4 + 3 and 5 + 3 tokens."""
    found = checked(tmp_path, CHATML)
    assert (found.tokens.p50, found.tokens.longest, found.tokens.total) == (15, 15, 15 * 60)
    assert found.tokens.counted_by.startswith("tokenizer of ")
    # The request is the question's turn and the opening of the answer.
    assert found.measures["request_tokens"]["p50"] == 7 + 2


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, None),
        (GENERATION, None),
        (refusing("user", "Users not supported"), ("template-refuses-rows", "error")),
        # The trainers put the text into the question, so nothing is refused.
        (refusing("system", "System role not supported"), ("template-without-system-turn", "note")),
        (each_turn("{% if m['role'] != 'system' %}" + TURN + "{% endif %}"),
         ("template-drops-system-text", "warning")),
        # Without the answer in the text there is nothing to learn.
        (each_turn("{% if m['role'] != 'assistant' %}" + TURN + "{% endif %}"),
         ("template-hides-answers", "error")),
        # A model that never sees the end of a turn never stops: the trainers add the token.
        (each_turn("{{ m['role'] }} : {{ m['content'] }}\n"),
         ("template-without-end-of-turn", "note")),
        (None, ("model-without-chat-template", "warning")),
        # Templates run in a sandbox: what looks for Python's insides is refused, not run.
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", ("template-refuses-rows", "error")),
    ],
)  # fmt: skip
def test_what_a_template_does_to_the_rows_is_said(tmp_path, template, expected):
    """Of all sixty rows; a template that takes every row is no finding."""
    found = checked(tmp_path, template, system=True).findings
    told = [(one.id, one.severity, one.count) for one in found]
    assert told == ([(*expected, 60)] if expected else [])


def test_what_the_template_refuses_blocks_training_and_what_is_moved_counts(tmp_path):
    """In the template's own words; lengths are those of the rows as they will be trained."""
    (refused,) = (found := checked(tmp_path, refusing("user", "Users not supported"))).findings
    assert refused.rows[:2] == (1, 2)
    assert "Users not supported" in refused.text
    assert found.objectives == ()
    found = checked(tmp_path, refusing("system", "System role not supported"), system=True)
    assert found.objectives
    assert found.tokens.p50 == (2 + 4 + 1) + (5 + 1)


def test_a_tokenizer_that_is_not_at_hand_or_cannot_be_used_is_said(tmp_path, monkeypatch):
    """The page names what counted, and a hub id is looked up in the cache, never fetched. The core
    install has neither package; nothing ends in a traceback.
    """
    found, _ = check_data(data(tmp_path), CheckOptions(model="nobody/nothing"))
    assert "approximation" in found.tokens.counted_by
    said = {finding.id: finding.text for finding in found.findings}
    assert "no folder with a tokenizer.json" in said["tokenizer-not-at-hand"]
    folder = Path(model(tmp_path, "{% for m in messages %}"))
    for missing, says in (
        ("tokenizers", "tokenizers package is not installed"), ("jinja2", "jinja2 is not installed"),
    ):  # fmt: skip
        names = {"tokenizers", "jinja2"} - {missing}
        with monkeypatch.context() as patch:
            patch.setattr("importlib.util.find_spec", {name: find_spec(name) for name in names}.get)
            assert says in model_tokenizer(str(folder))[1]
    assert "is broken" in model_tokenizer(str(folder))[1]
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be read" in model_tokenizer(str(folder))[1]
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
    rows = [{"prompt": f"What is {n}?", "completion": f"{answer} {n}"} for n in range(60)]
    given = tuple(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    options = CheckOptions(model=model(folder, template), full=True, template=given)
    found = check_data(str(jsonl(folder, rows)), options)[0].findings
    return {finding.id: finding.text for finding in found}


def test_a_thinking_model_on_data_without_thoughts_is_a_warning(tmp_path):
    """It names the argument that switches the thoughts off; with it there is nothing to say."""
    found = thinking(tmp_path, THINKS, "It is")
    assert "Write `template: {enable_thinking: false}` into the plan" in found["no-thoughts"]
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
