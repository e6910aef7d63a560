"""Changes of a file keep what nobody changed: comments, order, style, line ends."""

import json

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from advisor.extras.other_tools.yaml_text import edited

AXOLOTL = """\
# A job of ours.
base_model: Qwen/Qwen3-8B  # the base

datasets:
  - path: rows.jsonl   # our rows
    type: chat_template
  # - path: more.jsonl
micro_batch_size: 8 # too much
sequence_len: 8192
lora_target_modules:
  - q_proj
  - v_proj
gradient_checkpointing:
fsdp_config: {offload_params: true, version: 2}
chat_template_jinja: |
  {% for m in messages %}
  {{ m }}
  {% endfor %}
# the end
"""
CASES = [
    ({"micro_batch_size": 1}, "micro_batch_size: 1 # too much\n"),
    ({"gradient_checkpointing": True}, "gradient_checkpointing: true\n"),
    ({"learning_rate": 2e-5}, "# the end\nlearning_rate: 2.0e-05\n"),
    ({"sequence_len": None}, "micro_batch_size: 8 # too much\nlora_target_modules:\n"),
    ({"lora_target_modules": ["all"]}, "lora_target_modules: [all]\ngradient_checkpointing:\n"),
    ({"lora_target_modules": None}, "sequence_len: 8192\ngradient_checkpointing:\n"),
    ({"fsdp_config.version": 1}, "fsdp_config: {offload_params: true, version: 1}\n"),
    ({"fsdp_config.version": None}, "fsdp_config: {offload_params: true}\n"),
    ({"fsdp_config.offload_params": None}, "fsdp_config: {version: 2}\n"),
    ({"fsdp_config.reshard": "yes"}, "version: 2, reshard: 'yes'}\n"),
    ({"eval_strategy": "no"}, "eval_strategy: 'no'\n"),
    ({"gradient_checkpointing.inner": 1}, "gradient_checkpointing: {inner: 1}\n"),
    ({"model_config.rope": 2}, "model_config: {rope: 2}\n"),
    ({"chat_template_jinja": None}, "version: 2}\n"),
    ({"absent": None}, "# the end\n"),
]


@pytest.mark.parametrize(("changes", "part"), CASES)
def test_one_place_changes_and_the_rest_stays(changes, part):
    """Comments are still there, and the new text reads as the change says."""
    new = edited(AXOLOTL, changes)
    for kept in (part, "# A job of ours.", "# the base", "# our rows", "# too much"):
        assert kept in new
    for key, value in changes.items():
        found = yaml.safe_load(new)
        for step in key.split("."):
            found = (found or {}).get(step)
        assert found == value
    assert len(set(AXOLOTL.splitlines()) - set(new.splitlines())) <= 5


def test_json_keeps_its_indentation():
    """A JSON file stays one, key by key."""
    old = '{\n    "base_model": "m",\n    "micro_batch_size": 8,\n\t"deep": {"a": 1}\n}\n'
    new = edited(old, {"micro_batch_size": 1, "sequence_len": 512, "deep.a": None})
    assert '\n    "base_model": "m",\n    "micro_batch_size": 1,\n' in new
    values = {"base_model": "m", "micro_batch_size": 1, "deep": {}, "sequence_len": 512}
    assert json.loads(new) == values
    assert json.loads(edited('{"a": 1}', {"b": [1], "a": None})) == {"b": [1]}


def test_lines_that_nobody_changed_keep_their_form():
    """Also behind a key that goes, where a comment is about what comes next."""
    text = "base_model:  m   # two blanks\nbf16: True\ntokens: {\n  a: b }\nlora_r: 8\n"
    new = edited(text, {"lora_r": 16, "bf16": None})
    assert new == text.replace("bf16: True\n", "").replace("8", "16")
    assert edited("a: 1\nb: 2  # of b\n# of c\nc: 3\n", {"b": None}) == "a: 1\n# of c\nc: 3\n"


def test_what_takes_a_hand_is_not_edited():
    """A value that an anchor shares would change in two places."""
    assert edited("a: &one {b: 1}\nc: *one\n", {"a": 2}) is None
    assert edited("a: &one {b: 1}\nc: *one\n", {"c": 2}) == "a: &one {b: 1}\nc: 2\n"
    assert edited("{a: 1}\n", {"a": 2}) is None


KEYS = st.sampled_from(["a", "b", "c", "a b", "ü", "x-y"])
SCALARS = st.one_of(
    st.booleans(), st.integers(-5, 10**6), st.floats(1e-8, 1e8).map(lambda number: float(f"{number:.6g}")),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12),
    st.sampled_from(["yes", "1e-4", "null", "# no", "a: b", "- x", "*a", "{{ x }}", "", "'", '"']),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
MAPS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@example(values={"a": 1}, changes={"a": [1e-08]}, style=1)
@example(values={"a": 1e-08}, changes={}, style=2)
@given(values=MAPS, changes=st.dictionaries(KEYS, VALUES, max_size=3), style=st.integers(0, 2))
def test_what_is_written_reads_as_the_changes_say(values, changes, style):
    """For any file and any changes, in block style, with maps in one line, and as JSON."""
    text, read = json.dumps(values, indent=2, ensure_ascii=False), json.loads
    if style != 2:
        read, style = yaml.safe_load, (False, None)[style]
        text = yaml.safe_dump(values, default_flow_style=style, allow_unicode=True)
        assume(not text.startswith("{"))
    assert read(edited(text, changes)) == {**values, **changes}


def test_a_misspelt_key_is_renamed_at_its_place():
    """A key taken away with a new one behind it keeps its line, its comment and its number."""
    text, renamed = "lora_rnak: 1.0e-4  # why\nother: 2\n", {"lora_rnak": "lora_rank"}
    same = {"lora_rnak": None, "lora_rank": 1e-4}
    assert edited(text, same, renamed) == "lora_rank: 0.0001  # why\nother: 2\n"
    new = edited(text, {"lora_rnak": None, "lora_rank": 8}, renamed)
    assert new == "lora_rank: 8  # why\nother: 2\n"
    assert edited(text, {"lora_rnak": None, "other": 3}, renamed) == "other: 3\n"
