"""What `advise check` says of a chat template is what the trainers find when they write the rows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from advisor.data.example import Example, Message
from advisor.data.templates.tokenizer import template_at_hand
from trainers.rows import Templater
from trainers.rows.conversation import answer_row
from trainers.rows.row import Unusable
from trainers.rows.template import NO_TOOLS, REFUSED

COPIES = Path((find_spec("trl").submodule_search_locations or [""])[0], "chat_templates")
TEMPLATES = (
    "qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "gemma", "gemma3", "phi3",
    "lfm2", "deepseek_r1_distill", "glm4moe", "nemotron_3_nano",
)  # fmt: skip
PARCEL = {"type": "object", "properties": {"id": {"type": "string", "description": "Its number"}}}
TOOL = {
    "type": "function",
    "function": {"name": "track_parcel", "description": "Where it is", "parameters": PARCEL},
}


def rows_with_calls() -> list[Example]:
    """Each calls a function, reads its result and answers."""
    found = []
    for number in range(1, 6):
        call = {
            "type": "function",
            "id": "abcdefghi",
            "function": {"name": "track_parcel", "arguments": {"id": str(number)}},
        }
        result = {"tool_call_id": "abcdefghi", "name": "track_parcel"}
        messages = (
            Message("user", f"Where is parcel {number}?"),
            Message("assistant", "", extra={"tool_calls": [call]}),
            Message("tool", f"Depot {number}", extra=result),
            Message("assistant", f"It is in depot {number}."),
        )
        found.append(Example(row=number, messages=messages, tools=(TOOL,)))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_check_and_trainers_agree_on_tool_calls(name, tiny_model, tmp_path):
    """Rows that the trainers refuse for their calls, or that the template refuses, are those that
    advice warns of.
    """
    import shutil

    from transformers import AutoTokenizer

    path = COPIES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this version of trl has no {path.name}")
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(path.read_text("utf-8"))
    templater = Templater(AutoTokenizer.from_pretrained(folder))
    refused = set()
    for example in rows_with_calls():
        try:
            answer_row(example, templater)
        except Unusable as error:
            refused.add(error.args[0])
    found = {one.id for one in template_at_hand(str(folder), rows_with_calls())}
    assert (REFUSED in refused) is ("template-refuses-rows" in found)
    if NO_TOOLS in refused:
        assert "template-drops-calls" in found
    if "template-drops-calls" in found:
        assert refused
