"""Where a stage mixes in general rows against forgetting, and where it is said why not."""

import json

import pytest

from advisor.advice.facts import situation_facts
from advisor.advice.search.settings import StageCase
from advisor.advice.types import ALONE, SHARDED
from advisor.methods.composition import parse_composition
from advisor.situation.names import named_shape
from tests.advice.situations import RULES, asked

ROWS = {"rows": 500}


@pytest.mark.parametrize(
    ("composition", "changes", "value"),
    [
        ("sft+lora", {}, ROWS),  # few rows, read three times
        ("sft+lora", {"data_rows": 5000}, "not set"),
        ("sft+full", {"data_rows": 5000}, ROWS),
        ("sft+full", {"data_rows": 50_000}, "not set"),  # of which 500 answers are next to nothing
        ("sft+lora", {"data_rows": 5000, "priority": "retain_general_ability"}, ROWS),
        ("sft+lora", {"model": "Qwen/Qwen3-8B-Base"}, None),  # it has nothing to answer with
        ("encoder:sft+full", {"task": "classification"}, "not set"),
        ("dpo+lora", {}, "not set"),
    ],
)
def test_general_rows_are_chosen_where_forgetting_is_likely_and_they_help(
    composition, changes, value
):
    known = {"task": "qa", "model": "Qwen/Qwen3-8B", "gpu": "A100 PCIe 80GB", "data_rows": 300}
    situation = asked(**{**known, **changes})
    chosen, facts = parse_composition(composition), situation_facts(situation)

    def found(strategy):
        case = StageCase(RULES, situation, facts, chosen, chosen.chain[0], strategy)
        return case.settings().get("replay")

    alone, sharded = found(ALONE), found(SHARDED)
    assert (alone.value if alone else "not set") == value
    if alone:
        assert sharded.value is None
        why = "a base divided over GPUs answers nothing" if value else "it follows no instructions"
        assert why in sharded.because


def test_a_folder_with_a_chat_template_follows_instructions_whatever_its_name(tmp_path):
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "vocab_size": 49152,
    }  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert named_shape(str(folder))[0].instruct is None
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert named_shape(str(folder))[0].instruct is True
