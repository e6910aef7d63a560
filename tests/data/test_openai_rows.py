"""OpenAI's fine-tuning files: chat, tools, pairs, items with references, old completions, and what
is no training file at all.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.data import profile, read_examples, recognise
from advisor.data.example import read_turn
from advisor.data.measure import Depth
from advisor.ground.errors import InputError
from tests.data.conftest import findings, jsonl
from tests.data.test_examples import seen
from tests.render.test_data import page

USER = {"role": "user", "content": "How many tyres are left?"}
SCHEMA = {"type": "object", "properties": {"sku": {"type": "string"}}}
FUNCTION = {"name": "get_stock", "description": "How many are left", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}


def call(sku):
    function = {"name": "get_stock", "arguments": json.dumps({"sku": sku})}
    return {"id": f"call_{sku}", "type": "function", "function": function}


CALLS = {
    "no content": {"role": "assistant", "tool_calls": [call("T1")]},
    "null as content": {"role": "assistant", "content": None, "tool_calls": [call("T1")]},
    "two calls": {"role": "assistant", "tool_calls": [call("T1"), call("T2")]},
    "old spelling": {"role": "assistant", "function_call": call("T1")["function"]},
}
# `functions` are wrapped as tools, and the turn of a `function` is that of a tool.


ASKED, REFUSED = ("user", USER["content"]), "I cannot do that."
READ = {  # a row, and what is read in it
    # Calls are learned with or without a content beside them, and the functions come along.
    **{
        name: ({"messages": [USER, turn], "tools": [TOOL], "parallel_tool_calls": False},
               {"extra": [{}, {key: turn[key] for key in ("tool_calls", "function_call") if key in turn}],
                "tools": (TOOL,)})
        for name, turn in CALLS.items()
    },
    # `input` holds the turns and the functions; the preferred answer may be a call.
    "pairs": (
        {"input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
         "preferred_output": [CALLS["no content"]],
         "non_preferred_output": [{"role": "assistant", "content": "Many."}]},
        {"tools": (TOOL,), "rejected": [("assistant", "Many.")],
         "chosen extra": [{"tool_calls": [call("T1")]}]}),
    # A refusal is text that the assistant says.
    **{
        f"refusal {place}": ({"messages": [USER, {"role": "assistant", **turn}]},
                             {"messages": [ASKED, ("assistant", REFUSED)], "extra": [{}, {}]})
        for place, turn in enumerate((
            {"content": None, "refusal": REFUSED}, {"refusal": REFUSED},
            {"content": [{"type": "refusal", "refusal": REFUSED}]},
        ))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_row_is_read_as_openai_means_it(tmp_path, name):
    """Calls, the functions that are on offer, and refusals."""
    row, expected = READ[name]
    (example,) = read_examples(jsonl(tmp_path, [row]))
    found = seen(example)
    assert {key: found[key] for key in expected} == expected


def test_old_functions_are_tools_and_the_page_names_what_a_turn_calls(tmp_path):
    """Of both spellings, and all of several calls; the turn of a `function` is that of a tool."""
    old = [USER, CALLS["old spelling"], {"role": "function", "name": "get_stock", "content": "4"}]
    path = jsonl(tmp_path, [{"messages": [*old, CALLS["two calls"]], "functions": [FUNCTION]}])
    (found,) = read_examples(path)
    assert found.tools == (TOOL,)
    assert found.messages[2].role == "tool"
    shown = page(path)
    calls = [line.split("calls ")[1].strip() for line in shown.splitlines() if "calls " in line]
    assert {"get_stock", "get_stock, get_stock"} <= set(calls)
    assert "1 function on offer" in shown


def test_functions_declared_and_called_count_into_the_length(tmp_path):
    """A row is as long as what the model reads: its functions and calls too."""
    row = {"messages": [USER, CALLS["no content"]]}
    bare, with_tools = (
        profile(jsonl(tmp_path, [one]), Depth(strict=False)).tokens.longest
        for one in (row, {**row, "tools": [TOOL]})
    )
    called = json.dumps({"name": "get_stock", "arguments": '{"sku": "T1"}'})
    assert bare >= (len(USER["content"]) + len(called)) // 4
    assert with_tools - bare >= len(json.dumps(TOOL)) // 4 - 1


@given(
    weights=st.lists(st.sampled_from([None, 0, 1, 0.0, 1.0, "0", "1", False, True]), min_size=1),
    name=st.sampled_from([{}, {"name": "ann"}, {"refusal": None}]),
)
def test_weights_are_read_however_they_are_written(weights, name):
    """A weight of 0, in any spelling, is 0; one that is left out, null, or 1 is 1."""
    turns = [
        {"role": "assistant", "content": "Hi", **name, **({} if at is None else {"weight": at})}
        for at in weights
    ]
    read = [read_turn(turn).weight for turn in turns]
    assert read == [1.0 if at is None else float(int(at)) for at in weights]


# --------------------------------------------------------------------------- items with references


def test_items_with_references_say_how_to_practise_on_them(tmp_path):
    """Reference fields of any name can be the right answer; nobody guesses which. OpenAI's old guide
    left the prompt empty for texts to go on with.
    """
    rows = [
        {"messages": [USER], "compliant": "yes", "rule": f"section {at}", "response_format": {}}
        for at in range(5)
    ]
    path = jsonl(tmp_path, rows)
    note = findings(path)["requests-with-references"].text
    assert "--map messages=messages ground_truth=compliant; or --map" in note
    assert "response_format" not in note
    stated = profile(path, mapping={"messages": "messages", "ground_truth": "compliant"})
    assert stated.kind == "prompts_with_verifier"
    assert "grpo" in stated.objectives
    rows = [{"prompt": "", "completion": f" A story of tyre {at}."} for at in range(5)]
    found = recognise(jsonl(tmp_path, rows))
    assert (found.kind, dict(found.mapping)) == ("raw_text", {"text": "completion"})


# --------------------------------------------------------------------------- no training rows

NO_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"object": "fine_tuning.job", "id": "ftjob-1", "model": "gpt-4o-mini"}, "fine-tuning jobs"),
    ({"object": "fine_tuning.job.event", "id": "e-1", "message": "Step 1"}, "events of an OpenAI"),
    ({"object": "fine_tuning.job.checkpoint", "id": "c-1"}, "checkpoints of an OpenAI"),
    ({"object": "file", "id": "file-1", "filename": "a.jsonl"}, "descriptions of files"),
    ({"object": "chat.completion", "id": "c-1", "choices": []}, "without the requests they"),
    ({"custom_id": "a", "response": {"body": {}}, "error": None}, "answers of OpenAI's Batch API"),
    ({"custom_id": "a", "body": {"messages": [USER]}}, "requests or answers"),
]


@pytest.mark.parametrize(("row", "said"), NO_ROWS, ids=[said for _, said in NO_ROWS])
def test_what_holds_no_rows_is_refused_by_its_name(tmp_path, row, said):
    """The error names what the file is, and where the rows are."""
    whole = tmp_path / "list.json"
    whole.write_text(json.dumps({"object": "list", "data": [row], "has_more": False}))
    for path in (jsonl(tmp_path, [row] * 3), whole):
        with pytest.raises(InputError) as caught:
            recognise(path)
        (fault,) = caught.value.faults
        assert said in fault.what
        assert "GET /v1" in fault.hint or '{"messages"' in fault.hint
