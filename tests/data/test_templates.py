"""Whether a chat template holds the data (tried, else by family), and lengths by its tokenizer."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from advisor.commands.check import check_data
from advisor.commands.check_options import CheckOptions
from advisor.data.example import Example, Message
from advisor.data.templates import tokenizer as module
from advisor.data.templates.chat_text import ChatText, lost_parts
from advisor.data.templates.tokenizer import ModelTokenizer, model_tokenizer
from advisor.ground.types import Answer, AnswerSet
from advisor.situation.build import situation_of
from advisor.situation.catalogue import suggested_models
from advisor.situation.suggestions import NEEDS, family_of, lacks, template_families
from tests.advice.situations import UNKNOWN_MACHINE
from tests.data.conftest import jsonl

PARCEL = {"type": "object", "properties": {"id": {"type": "string", "description": "Its number"}}}
TOOL = {
    "type": "function",
    "function": {"name": "track_parcel", "description": "Where it is", "parameters": PARCEL},
}
SILENT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
)
CALLING = (
    "{{ tools | tojson }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{{ message.tool_calls | tojson if message.tool_calls else '' }}"
    "{{ message.reasoning_content if message.reasoning_content else '' }}<|end|>{% endfor %}"
)


def conversation(number: int) -> dict:
    """Odd rows call a tool, rows divisible by four hold thoughts."""
    if number % 2:
        call = {"name": "track_parcel", "arguments": json.dumps({"id": str(number)})}
        messages = [
            {"role": "user", "content": f"Where is {number}?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": f"Depot {number}"},
            {"role": "assistant", "content": f"In depot {number}."},
        ]  # fmt: skip
        return {"messages": messages, "tools": [TOOL]}
    answer = {"role": "assistant", "content": f"It is {number}."}
    if number % 4 == 0:
        answer["reasoning_content"] = f"I count to {number}"
    return {"messages": [{"role": "user", "content": f"Number {number}?"}, answer]}


def write_rows(path: Path, numbers) -> Path:
    path.write_text("\n".join(json.dumps(conversation(number)) for number in numbers))
    return path


def write_model(folder: Path, template: str | None) -> Path:
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "vocab_size": 1000,
    }  # fmt: skip
    files = {
        "config.json": json.dumps(config), "tokenizer.json": '{"added_tokens": []}',
        "tokenizer_config.json": '{"eos_token": "</s>"}', "chat_template.jinja": template,
    }  # fmt: skip
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def situation(data, **more):
    """The situation of somebody with these rows."""
    known = {"task": "tool_use", "data_path": str(data), "gpu": "RTX 4090", **more}
    answers = {key: Answer(value=value, origin="flag") for key, value in known.items()}
    return situation_of(AnswerSet(known=answers), probed=UNKNOWN_MACHINE)


def warnings_of(data: Path, model: str) -> list[str]:
    found = situation(data, model=model).model_warnings
    return [text for text in found if "template" in text and "switches" not in text]


@pytest.fixture
def rows(tmp_path):
    """Forty rows, half of which call a tool; ten hold thoughts."""
    return write_rows(tmp_path / "rows.jsonl", range(1, 41))


@pytest.fixture
def no_models(tmp_path, monkeypatch):
    """No file of a model of the hub is at hand."""
    for cache in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):  # the hub's, and what the demo made
        monkeypatch.setenv(cache, str(tmp_path / "none"))


@pytest.mark.parametrize("template", [SILENT, CALLING, None], ids=["silent", "calling", "none"])
def test_a_template_at_hand_is_tried_on_the_rows(tmp_path, rows, template, approved):
    """What it leaves out is said with the number of rows, also for a model without a template."""
    approved(warnings_of(rows, str(write_model(tmp_path / "model", template))))


@pytest.mark.parametrize(
    ("template", "numbers"),
    [
        (SILENT, range(1, 41)),  # 20 of 40 call a tool
        (None, range(1, 41)),
        (CALLING, range(1, 41)),
        (SILENT, [*range(2, 82, 2), 1]),  # 1 of 41: a run leaves it out
    ],
    ids=["silent", "none", "calling", "one of 41"],
)
def test_rows_that_would_stop_the_run_are_told_before_a_plan(tmp_path, template, numbers, approved):
    """A plan that `advise run` would refuse at once is not made: it lacks a model that can."""
    data = write_rows(tmp_path / "rows.jsonl", numbers)
    approved(situation(data, model=str(write_model(tmp_path / "model", template))).unsuited)


@pytest.mark.parametrize(
    "model",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "google/gemma-2-9b-it",
        "Qwen/Qwen3-8B",
        "Qwen/Qwen2.5-7B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
    ],
)
def test_a_name_alone_tells_by_its_family(tmp_path, no_models, rows, call, model, approved):
    """Without files a model's family counts, also for `check`; single questions fit every one."""
    found = json.loads(call("check", rows, "--model", model, "--json")[1])["findings"]
    approved(
        [warnings_of(rows, model), [one for one in found if one["id"] == "template-of-family"]]
    )
    plain = write_rows(tmp_path / "plain.jsonl", range(2, 400, 4))
    assert not warnings_of(plain, "HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.mark.parametrize("gpu", ["none", "RTX 4060 8GB", "A100 80GB"])
def test_the_suggested_model_holds_the_data(rows, gpu):
    """Nobody named a model: the one that is suggested writes what the rows need."""
    assert not lacks(situation(rows, gpu=gpu).suggestion.model, NEEDS)


def test_families_are_looked_up_by_the_last_part_of_a_name():
    """Names are compared in small letters, and what is not listed is not known."""
    assert family_of("somebody/QWEN3-8B").tools is True
    assert family_of("./models/gemma-2-9b-it/").system is False
    assert family_of("nobody/knows-this") is None
    families = [family_of(row["model"]) for row in suggested_models()["models"]]
    assert all(family is None or family.names for family in families)


ASKED, ANSWER = Message("user", "Where is it?"), Message("assistant", "In the depot.")
FUNCTION = {"name": "track_parcel", "arguments": {"id": "1"}}
CALLS = Message(
    "assistant", "",
    extra={"tool_calls": [{"type": "function", "id": "abcdefghi", "function": FUNCTION}]},
)  # fmt: skip
RESULT = Message("tool", "Depot 1", extra={"tool_call_id": "abcdefghi", "name": "track_parcel"})
BESIDE = Message("assistant", "In the depot.", extra={"reasoning_content": "It was sent"})
TRIED = {  # what a family is said to write, and a conversation that needs it
    "tools": (ASKED, CALLS, RESULT, ANSWER),
    "system": (Message("system", "Be kind."), ASKED, ANSWER),
    "thoughts": (ASKED, Message("assistant", "<think>\nIt was sent\n</think>\n\nIn the depot.")),
    "reasoning": (ASKED, BESIDE),
}


@pytest.mark.skipif(find_spec("trl") is None, reason="the copies come with trl")
@pytest.mark.parametrize(
    "family", [one for one in template_families() if one.copy], ids=lambda one: one.copy
)
def test_what_is_said_of_a_family_is_measured(family):
    """Each family's entry is what its template does, by the copy that trl has of it."""
    folder = Path(find_spec("trl").submodule_search_locations[0], "chat_templates")
    path = folder / f"{family.copy}.jinja"
    if not path.is_file():
        pytest.skip(f"this version of trl has no {path.name}")
    chat = ChatText(path.read_text("utf-8"), {"bos_token": "<s>", "eos_token": "</s>"})
    model = ModelTokenizer(model="", chat=chat)

    def writes_all(messages, tools):
        example = Example(row=1, messages=messages, tools=tools)
        try:
            whole = model.write(messages, example)
        except Exception:  # it refuses the conversation
            return False
        lost = lost_parts(messages, tools, whole, lambda other: model.write(other, example))
        system = [message.content for message in messages if message.role == "system"]
        return not lost and all(text in whole for text in system)

    for key, messages in TRIED.items():
        if (said := getattr(family, key)) is not None:
            assert writes_all(messages, (TOOL,) if key == "tools" else ()) is said, key


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
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    config = {"eos_token": {"content": "<|im_end|>"}}
    if template:
        config["chat_template"] = template
    (folder / "model").mkdir(exist_ok=True)
    made.save(str(folder / "model" / "tokenizer.json"))
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder / "model")


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


def test_lengths_are_those_of_the_rendered_conversation(tmp_path, approved):
    """Each turn costs its words and three of the template: 4 + 3 and 5 + 3 tokens, and the request
    is the question's turn and the opening of the answer.
    """
    found = checked(tmp_path, CHATML)
    approved([found.tokens, found.measures["request_tokens"]])


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
def test_what_a_template_does_to_the_rows_is_said(tmp_path, template, expected, approved):
    """Of all sixty rows; a template that takes every row is no finding."""
    found = checked(tmp_path, template, system=True).findings
    told = [(one.id, one.severity, one.count) for one in found]
    assert told == ([(*expected, 60)] if expected else [])
    approved(found)


def test_what_the_template_refuses_blocks_training_and_what_is_moved_counts(tmp_path, approved):
    """In the template's own words; lengths are those of the rows as they will be trained."""
    refused = checked(tmp_path, refusing("user", "Users not supported"))
    moved = checked(tmp_path, refusing("system", "System role not supported"), system=True)
    approved([[one.findings, one.objectives, one.tokens] for one in (refused, moved)])


def test_a_tokenizer_that_is_not_at_hand_or_cannot_be_used_is_said(tmp_path, monkeypatch, approved):
    """The page names what counted; a hub id is never fetched, and nothing ends in a traceback."""
    found, _ = check_data(data(tmp_path), CheckOptions(model="nobody/nothing"))
    folder, missing = Path(model(tmp_path, "{% for m in messages %}")), []
    for others in ("jinja2", "tokenizers"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.util.find_spec", {others: find_spec(others)}.get)
            missing.append(model_tokenizer(str(folder))[1].partition(" (pip")[0])
    approved([found.tokens.counted_by, found.findings, missing])
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


@pytest.mark.parametrize(
    ("template", "answer", "arguments", "finding"),
    [
        # What switches the thoughts off is named; with it there is nothing to say.
        (THINKS, "It is", {}, "no-thoughts"),
        (THINKS, "It is", {"enable_thinking": False}, None),
        (THINKS, "<think>One.</think>It is", {}, None),
        (THINKS, "<think>One.</think>It is", {"enable_thinking": False}, "thoughts-switched-off"),
        (CHATML, "<think>One.</think>It is", {}, "thoughts-unknown"),
        (CHATML, "It is", {}, None),
        (CHATML, "It is", {"enable_thinking": False}, "template-argument-unknown"),
        (THINKS.replace("not enable", "enable"), "It is", {}, None),  # thinks if it is told to
    ],
)
def test_thoughts_of_data_and_model_are_compared(
    tmp_path, template, answer, arguments, finding, approved
):
    """Each way to disagree has its finding, and agreement has none."""
    rows = [{"prompt": f"What is {n}?", "completion": f"{answer} {n}"} for n in range(60)]
    given = tuple(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    options = CheckOptions(model=model(tmp_path, template), full=True, template=given)
    found = check_data(str(jsonl(tmp_path, rows)), options)[0].findings
    ids = {one.id for one in found if "thoughts" in one.id or "template-argument" in one.id}
    assert ids == ({finding} if finding else set())
    approved({one.id: one.text for one in found})
