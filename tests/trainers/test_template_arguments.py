"""Arguments of the chat template: one line of the plan reaches everything that reads a template."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from advisor.ground.errors import InputError
from advisor.plan.record import RunRecord, StageRecord
from advisor.plan.write import plan_digest
from advisor.render.report import model_card
from advisor.render.run import serve_command
from tests.trainers.families import family_tokenizer
from trainers.prepare.template_arguments import (
    argument_names,
    give_arguments,
    with_arguments,
    without_arguments,
    written_arguments,
)

OFF = {"enable_thinking": False}
# As Qwen3's: an empty thought in front of the answer says that the model is not to think.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if"
    " add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not"
    " enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def published():
    """The chat templates of published models that come with TRL."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    files = [path for path in sorted(folder.glob("*.jinja")) if "training" not in path.stem]
    return {path.stem: path.read_text("utf-8") for path in files}


def written(source, **arguments):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    return [
        render_jinja_template(
            [talk[:turns]],
            chat_template=source,
            add_generation_prompt=turns == 1,
            bos_token="<s>",
            **arguments,
        )[0][0]
        for turns in (1, 2)
    ]


def test_a_stored_argument_writes_what_a_passed_one_writes():
    """A template with an argument in front of it writes as the original does if the caller passes
    that argument; a caller who passes another value still gets that.
    """
    found = published()
    told_apart = 0
    for name in ("qwen3", "qwen3_6", "glm4moe", "gemma4", "nemotron_3_nano"):
        source = found[name]
        stored = with_arguments(source, OFF)
        off, on = (written(source, enable_thinking=value) for value in (False, True))
        told_apart += off != on
        assert written(stored) == off
        assert written(stored, enable_thinking=True) == on
        assert written_arguments(stored) == OFF
        assert without_arguments(stored) == source
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


def test_every_kind_of_value_reads_back():
    """Texts with quotes and newlines, numbers and truth values stand in the template unchanged."""
    values = {"a": 'a "b"\\n\n% é', "b": -2.5, "c": 3, "d": True}
    stored = with_arguments("\n  {% if d %}{{ a }}|{{ b }}|{{ c }}{% endif %}", values)
    assert written_arguments(stored) == values
    (text,), _ = render_jinja_template([[]], chat_template=stored)
    assert text == f"\n{values['a']}|-2.5|3"
    assert written_arguments(with_arguments(stored, {"c": 4})) == {**values, "c": 4}


def test_an_argument_that_the_template_does_not_read_is_refused():
    """A misspelt argument is bad input, with the names that the template has."""
    tokenizer = family_tokenizer("smollm")
    with pytest.raises(InputError, match=r"never reads 'thinking'\n.*it has no arguments"):
        give_arguments(tokenizer, {"thinking": False}, model="m")


@pytest.fixture
def thinker(make, tiny_model, tmp_path):
    """Jobs on a tiny model whose template can be told not to think."""
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(THINKING)

    def build(template, **keys):
        job = make(**{"max_steps": 2, "job_judge": False} | keys)
        return replace(job, plan=replace(job.plan, model=str(folder), template=template))

    return build


def test_a_misspelt_argument_is_refused_before_the_model_loads(thinker, monkeypatch):
    """The fault names the argument that was meant."""
    from trainers import sft
    from trainers.frame import loading

    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=r"'enable_thinkin'\n(.|\n)*enable_thinking"):
        sft.train(thinker({"enable_thinkin": False}))


def test_the_argument_reaches_rows_prompts_checkpoints_and_the_run(thinker):
    """Training rows, the prompts to be answered, prepared rows, the checkpoint's fingerprint and
    the name of the run all change with the argument.
    """
    from trainers.frame.loading import load_tokenizer
    from trainers.frame.rows import prepare_rows
    from trainers.frame.stage import stage_fingerprint
    from trainers.prepare.prompts import PROMPTS

    seen = []
    for template in ({}, OFF):
        job = thinker(template)
        tokenizer = load_tokenizer(job)
        rows = prepare_rows(job, tokenizer)
        (row,) = [row for row in rows.train if row.number == 1]
        seen.append(
            (
                tokenizer.decode([token for token in row.labels if token >= 0]),
                row.prompt,
                prepare_rows(job, tokenizer, PROMPTS).train[0].prompt,
                rows.digest,
                stage_fingerprint(job, 1, {"torch": "1"}, "rows"),
                plan_digest(job.plan),
            )
        )
        assert rows.template == "the tokenizer's own" + " with enable_thinking: false" * bool(
            template
        )
    plain, off = seen
    assert plain[0].startswith("<think>")
    assert off[0] == "Thank you for writing, order 0.<|im_end|>"
    for place in (1, 2):
        assert off[place] == plain[place] + "<think>\n\n</think>\n\n"
    assert all(a != b for a, b in zip(plain, off, strict=True))


def test_the_result_carries_the_argument(thinker):
    """Whoever loads the result gets the same prompts: chat, transformers, a second stage, and vLLM
    by the template that the command names; the model card says so.
    """
    from transformers import AutoTokenizer

    from trainers import sft
    from trainers.tools.results import prompt_ids

    job = thinker(OFF)
    sft.train(job)
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hello"}])["input_ids"][0]
    assert tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.chat_template == with_arguments(THINKING, OFF)
    result = json.loads((job.output / "result.json").read_text())
    assert result["resolved"]["template"] == OFF
    record = RunRecord.from_dict(
        {
            "schema_version": 1, "name": "t", "status": "done", "model": "m", "max_steps": None,
            "stages": [
                {
                    "name": "sft", "objective": "sft", "update": "lora", "status": "done",
                    "folder": "stages/sft",
                }
            ],
            "resolved": {"sft": result["resolved"]},
        }
    )  # fmt: skip
    (stage,) = record.stages
    assert isinstance(stage, StageRecord)
    command = serve_command(record, [stage], job.run)
    assert f"--chat-template {job.run}/stages/sft/chat_template.jinja" in command
    assert "with enable_thinking: false, stored in chat_template.jinja" in model_card(record, stage)
