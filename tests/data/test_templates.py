"""Whether a chat template holds the data: tried where it is at hand, by family where it is not."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from advisor.data.example import Example, Message
from advisor.data.templates.chat_text import ChatText, lost_parts
from advisor.data.templates.tokenizer import ModelTokenizer
from advisor.ground.types import Answer, AnswerSet
from advisor.situation.build import situation_of
from advisor.situation.catalogue import suggested_models
from advisor.situation.suggestions import NEEDS, family_of, lacks, template_families
from tests.advice.situations import UNKNOWN_MACHINE

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
    found = situation(data, model=model).warnings
    return [text for text in found if "template" in text and "switches" not in text]


@pytest.fixture
def rows(tmp_path):
    """Forty rows, half of which call a tool; ten hold thoughts."""
    return write_rows(tmp_path / "rows.jsonl", range(1, 41))


@pytest.fixture
def no_models(tmp_path, monkeypatch):
    """No file of a model of the hub is at hand."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (SILENT, ["does not write the tool calls of 20 of 40 rows",
                  "thoughts behind the answers of 10 of 40 rows"]),
        (CALLING, []),
        (None, ["does not write the tool calls of 20 of 40 rows",
                "store this plain template with the result"]),
    ],
)  # fmt: skip
def test_a_template_at_hand_is_tried_on_the_rows(tmp_path, rows, template, said):
    """What it leaves out is said with the number of rows, also for a model without a template."""
    told = "\n".join(warnings_of(rows, str(write_model(tmp_path / "model", template))))
    assert bool(told) == bool(said)
    assert [part for part in said if part not in told] == []


@pytest.mark.parametrize(
    ("template", "numbers", "lacks"),
    [
        (SILENT, range(1, 41), True),  # 20 of 40 call a tool
        (None, range(1, 41), True),
        (CALLING, range(1, 41), False),
        (SILENT, [*range(2, 82, 2), 1], False),  # 1 of 41: a run leaves it out
    ],
)
def test_rows_that_would_stop_the_run_are_told_before_a_plan(tmp_path, template, numbers, lacks):
    """A plan that `advise run` would refuse at once is not made: it lacks a model that can."""
    data = write_rows(tmp_path / "rows.jsonl", numbers)
    found = situation(data, model=str(write_model(tmp_path / "model", template))).unsuited
    assert bool(found) is lacks
    if lacks:
        assert "a model whose chat template writes tool calls (20 of 40 rows" in found


CALLS_LOST, THOUGHTS_LOST = r"tool calls.*20 of 40 rows", r"thoughts beside.*10 of 40 rows"


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", [CALLS_LOST]),
        ("google/gemma-2-9b-it", [CALLS_LOST, THOUGHTS_LOST]),
        ("Qwen/Qwen3-8B", []),
        ("Qwen/Qwen2.5-7B-Instruct", [THOUGHTS_LOST]),
        ("meta-llama/Llama-3.1-8B-Instruct", [THOUGHTS_LOST]),
    ],
)
def test_a_name_alone_tells_by_its_family(tmp_path, no_models, rows, model, lost):
    """Its family counts where no file is at hand; single questions fit every template."""
    told = warnings_of(rows, model)
    assert len(told) == len(lost)
    assert all(re.search(*both) for both in zip(lost, told, strict=True)), told
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
INSIDE = Message("assistant", "<think>\nIt was sent\n</think>\n\nIn the depot.")
BESIDE = Message("assistant", "In the depot.", extra={"reasoning_content": "It was sent"})
TRIED = {  # what a family is said to write, and a conversation that needs it
    "tools": (ASKED, CALLS, RESULT, ANSWER),
    "system": (Message("system", "Be kind."), ASKED, ANSWER),
    "thoughts": (ASKED, INSIDE),
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


def test_check_tells_it_too(no_models, rows, call):
    """`advise check DATA --model M` names the rows, also where only the model's name is known."""
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    _, out, _ = call("check", rows, "--model", model, "--json")
    found = {one["id"]: one["text"] for one in json.loads(out)["findings"]}
    assert "20 of 40 rows" in found["template-of-family"]
