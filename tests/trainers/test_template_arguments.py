"""Arguments of the chat template: one line of the plan reaches everything that reads a template."""

import shutil
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from msgspec import structs
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from advisor.api import advise_document
from advisor.data.example import Example, Message
from advisor.data.templates.chat_text import ALWAYS, SWITCHES, switch_of
from advisor.data.templates.tokenizer import template_at_hand
from advisor.ground.errors import InputError
from advisor.plan.write import plan_digest
from advisor.record.run import RunRecord
from advisor.render.report import model_card
from advisor.render.result_commands import serve_command
from advisor.situation.catalogue import catalogue_ids, organisation_models
from tests.trainers.families import byte_level
from tests.trainers.fitting import prepare_stage_rows
from tests.trainers.runs import trained, write_rows
from trainers.keep.checkpoint_store import dependencies, fingerprint
from trainers.rows import ANSWERS, Templater
from trainers.rows.conversation import PROMPTS, answer_row
from trainers.rows.row import Unusable
from trainers.rows.stage_rows import prepare_rows
from trainers.rows.template import NO_TOOLS, REFUSED, template_record
from trainers.rows.template_arguments import (
    argument_names,
    split_arguments,
    with_arguments,
    with_fixed_arguments,
)
from trainers.start.loading import load_tokenizer
from trainers.tools.results import prompt_ids

OFF = {"enable_thinking": False}
# As Qwen3's: an empty thought in front of the answer says that the model is not to think.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if"
    " add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not"
    " enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@cache
def published():
    """The chat templates of published models that come with TRL."""
    folder = Path(find_spec("trl").submodule_search_locations[0], "chat_templates")
    files = [path for path in sorted(folder.glob("*.jinja")) if "training" not in path.stem]
    return {path.stem: path.read_text("utf-8") for path in files}


def written(source, **arguments):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    keys = {"chat_template": source, "bos_token": "<s>", **arguments}
    return [
        render_jinja_template([talk[:turns]], add_generation_prompt=turns == 1, **keys)[0][0]
        for turns in (1, 2)
    ]


def test_a_stored_argument_writes_what_a_passed_one_writes():
    """A caller who passes another value still gets that."""
    told_apart = 0
    for name in ("qwen3", "qwen3_6", "glm4moe", "gemma4", "nemotron_3_nano"):
        source = published()[name]
        stored = with_arguments(source, OFF)
        off, on = (written(source, enable_thinking=value) for value in (False, True))
        told_apart += off != on
        assert (written(stored), written(stored, enable_thinking=True)) == (off, on)
        assert split_arguments(stored) == (OFF, source)
    assert told_apart >= 4


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("qwen3", ["enable_thinking"]),
        ("gptoss", ["builtin_tools", "model_identity", "reasoning_effort"]),
        ("llama3_2", ["custom_tools", "date_string", "tools_in_user_message"]),
        ("deepseek_r1_distill", []),
    ],
)
def test_the_arguments_of_published_templates_are_found(name, arguments):
    """What the caller may give is told from what the template sets for itself."""
    assert argument_names(published()[name]) == arguments


def test_an_argument_can_be_fixed_for_programs_that_give_their_own():
    """llama.cpp and Ollama say enable_thinking: true to every template; the training said false."""
    fixed = with_fixed_arguments(with_arguments(THINKING, OFF))
    assert written(THINKING, **OFF) == written(fixed, enable_thinking=True)
    assert with_fixed_arguments(THINKING) == THINKING


def test_every_kind_of_value_reads_back():
    """Texts with quotes and newlines, numbers and truth values stand in the template unchanged."""
    values = {"a": 'a "b"\\n\n% é', "b": -2.5, "c": 3, "d": True}
    stored = with_arguments("\n  {% if d %}{{ a }}|{{ b }}|{{ c }}{% endif %}", values)
    assert split_arguments(stored)[0] == values
    (text,), _ = render_jinja_template([[]], chat_template=stored)
    assert text == f"\n{values['a']}|-2.5|3"
    assert split_arguments(with_arguments(stored, {"c": 4}))[0] == {**values, "c": 4}


@pytest.fixture
def thinker(make, tiny_model, tmp_path):
    """Jobs on a tiny model whose template can be told not to think."""
    folder = with_template(tiny_model, tmp_path / "thinker", THINKING)

    def build(template, **keys):
        job = make(**{"max_steps": 2, "job_judge": False} | keys)
        return replace(job, plan=structs.replace(job.plan, model=str(folder), template=template))

    return build


def with_template(model, folder, source):
    """A copy of the model that has this template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(source)
    return folder


def test_an_argument_that_the_template_does_not_read_is_refused(thinker, make, unloaded):
    """Before the model loads, with the argument that was meant, or that the template has none."""
    with pytest.raises(InputError, match=r"'enable_thinkin'\n(.|\n)*enable_thinking"):
        trained(thinker({"enable_thinkin": False}))
    job = make()
    with pytest.raises(InputError, match=r"never reads 'thinking'\n.*it has no arguments"):
        trained(replace(job, plan=structs.replace(job.plan, template={"thinking": False})))


def test_the_argument_reaches_rows_prompts_checkpoints_and_the_run(thinker):
    """Rows, prompts, prepared files, fingerprint and the run's name change with it."""
    seen = []
    for template in ({}, OFF):
        job = thinker(template)
        tokenizer = load_tokenizer(job)
        rows = prepare_rows(job, tokenizer)
        (row,) = [row for row in rows.train if row.number == 1]
        seen.append({
            "template": rows.template,
            "learned": tokenizer.decode([token for token in row.labels if token >= 0]),
            "prompt": row.prompt,
            "asked": prepare_rows(job, tokenizer, PROMPTS).train[0].prompt,
            "rows": rows.digest,
            "checkpoint": fingerprint(dependencies(job, {"rows": "rows"}, steps=1).depends_on),
            "run": plan_digest(job.plan),
        })  # fmt: skip
    plain, off = seen
    assert plain["learned"].startswith("<think>")
    told = {
        "template": "the tokenizer's own with enable_thinking: false",
        "learned": "Thank you for writing, order 0.<|im_end|>",
        "prompt": plain["prompt"] + "<think>\n\n</think>\n\n",
        "asked": plain["asked"] + "<think>\n\n</think>\n\n",
    }
    assert told.items() <= off.items()
    assert plain["template"] == "the tokenizer's own"
    assert [key for key in plain if plain[key] == off[key]] == []


def test_the_result_carries_the_argument(thinker):
    """Chat, transformers, a second stage and vLLM get the same prompts; the model card says so."""
    job = thinker(OFF)
    resolved = trained(job)["resolved"]
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hello"}])["input_ids"]
    assert tokenizer.decode(ids[0]).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.chat_template == with_arguments(THINKING, OFF)
    assert resolved["template"] == OFF
    ended = {
        "name": "sft", "objective": "sft", "update": "lora", "status": "done",
        "folder": "stages/sft",
    }  # fmt: skip
    record = RunRecord.from_dict(
        {
            "schema_version": 1, "name": "t", "status": "done", "model": "m", "max_steps": None,
            "stages": [ended], "resolved": {"sft": resolved},
        }
    )  # fmt: skip
    (stage,) = record.stages
    command = serve_command(record, [stage], job.run)
    assert f"--chat-template {job.run}/stages/sft/chat_template.jinja" in command
    assert "with enable_thinking: false, stored in chat_template.jinja" in model_card(record, stage)


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("qwen3", "enable_thinking"),
        ("qwen3_5_think", "enable_thinking"),
        ("qwen3_5_nothink", None),
        ("gemma4", None),
        ("deepseek_r1_distill", "always"),
        ("gptoss", "always"),
        ("qwen3_instruct_2507", None),
        ("llama3_2", None),
    ],
)
def test_models_that_think_are_known_by_their_template(name, switch):
    """A template tells whether its model thinks unless it is told not to."""
    source = published()[name]
    assert switch_of(source, lambda **keys: written(source, **keys)[0]) == switch


def test_the_catalogue_says_of_these_models_what_their_templates_say():
    """Each entry that thinks has its source; Qwen3 and the distills agree with their templates."""
    entries = {
        hub_id: organisation_models(hub_id.split("/")[0].lower())[hub_id]
        for hub_id in catalogue_ids()
    }
    found = {hub_id: entry["thinks"] for hub_id, entry in entries.items() if "thinks" in entry}
    assert len(found) >= 20
    assert found.keys() == {hub_id for hub_id in entries if "thinks_source" in entries[hub_id]}
    assert set(found.values()) <= {*SWITCHES, ALWAYS}
    assert found["Qwen/Qwen3-8B"] == found["Qwen/Qwen3.5-9B"] == "enable_thinking"
    assert found["deepseek-ai/DeepSeek-R1-Distill-Llama-8B"] == found["openai/gpt-oss-20b"]
    assert not {"Qwen/Qwen3.5-2B", "Qwen/Qwen3-4B-Instruct-2507"} & found.keys()


def test_a_run_says_that_the_model_thinks_and_the_data_do_not(thinker):
    """The note names the line of the plan; with that line, and for prompts alone, there is none."""

    def notes(template, kind=ANSWERS):
        job = thinker(template)
        return " ".join(prepare_rows(job, load_tokenizer(job), kind).notes)

    assert "`template: {enable_thinking: false}`" in notes({})
    assert "thinks" not in notes(OFF)
    assert "thinks" not in notes({}, PROMPTS)


def test_a_base_model_is_told_how_its_conversations_are_written(make):
    """The plain template is shown as it writes, once, and is marked in the record."""
    job = make()
    tokenizer = load_tokenizer(job)
    tokenizer.chat_template = None
    (note, *rest) = prepare_rows(job, tokenizer).notes
    assert "'User: Hello\\n\\nAssistant: Good morning<|im_end|>\\n\\n'" in note
    assert not any("plain template" in other for other in rest)
    assert template_record(tokenizer) == {"template": {}, "plain_template": True}


@pytest.mark.parametrize(
    ("model", "answer", "template"),
    [
        ("Qwen/Qwen3-8B", "Yes, {}.", OFF),
        ("Qwen/Qwen3-8B", "<think>Hm.</think>Yes, {}.", {}),
        ("Qwen/Qwen3-4B-Instruct-2507", "Yes, {}.", {}),
        ("openai/gpt-oss-20b", "Yes, {}.", {}),
    ],
)
def test_advice_switches_thoughts_off_that_the_data_do_not_have(model, answer, template, tmp_path):
    """The plan has the argument with the reason, and the warning says so."""
    rows = [{"prompt": f"Question {n} of many?", "completion": answer.format(n)} for n in range(60)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    document = advise_document(
        {
            "task": "customer_service", "data": {"path": str(path)}, "model": model,
            "gpu": "RTX 4090", "depth": "style", "signals": ["prompting_tried"],
        }
    )  # fmt: skip
    said = [text for text in document["warnings"] if "thinks before it answers" in text]
    assert bool(said) == (bool(template) or "gpt-oss" in model)
    if document["plan"] is not None:
        assert document["plan"].get("template", {}) == template
    assert document["plan"] is not None or not template


@pytest.mark.parametrize(("name", "kept"), [("deepseek_r1_distill", False), ("qwen3", True)])
def test_thoughts_that_the_template_leaves_out_are_told(name, kept):
    """DeepSeek-R1's template cuts the thoughts off each answer, so that none is learned."""
    tokenizer = byte_level(("<|im_end|>",), eos="<|im_end|>")
    tokenizer.chat_template = published()[name]
    turns = (Message("user", "Well?"), Message("assistant", "<think>Hm.</think>Yes."))
    data = prepare_stage_rows(
        [Example(row=1, messages=turns)],
        Templater(tokenizer),
        seq_len=256, truncation="stop", holdout=0.0, seed=1,
    )  # fmt: skip
    learned = [token for token in data.train[0].labels if token >= 0]
    assert ("Hm." in tokenizer.decode(learned)) is kept
    assert ("leaves them out: they are not learned" in " ".join(data.notes)) is not kept


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
    result = {"tool_call_id": "abcdefghi", "name": "track_parcel"}

    def messages(number):
        function = {"name": "track_parcel", "arguments": {"id": str(number)}}
        call = {"type": "function", "id": "abcdefghi", "function": function}
        return (
            Message("user", f"Where is parcel {number}?"),
            Message("assistant", "", extra={"tool_calls": [call]}),
            Message("tool", f"Depot {number}", extra=result),
            Message("assistant", f"It is in depot {number}."),
        )

    return [Example(row=n, messages=messages(n), tools=(TOOL,)) for n in range(1, 6)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_check_and_trainers_agree_on_tool_calls(name, tiny_model, tmp_path):
    """Rows that trainers or the template refuse for their calls are those that advice warns of."""
    if name not in published():
        pytest.skip(f"this version of trl has no {name}")
    folder = with_template(tiny_model, tmp_path / "model", published()[name])
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
