"""Generated files are fresh, and what they describe holds for the shipped files."""

import json

import jsonschema
import pytest
import yaml

from advisor.resources import rules_dir
from tests.generated import generated


@pytest.mark.parametrize("path", list(generated()), ids=lambda path: path.name)
def test_a_generated_file_is_fresh(path):
    """`python -m tests.generated` would change nothing."""
    assert path.read_text() == generated()[path]


def test_every_shipped_rule_file_fits_its_schema():
    """The schema that its modeline names accepts each file."""
    checked = 0
    for path in rules_dir().rglob("*.yaml"):
        first = path.read_text().splitlines()[0]
        if not first.startswith("# yaml-language-server: $schema="):
            continue
        schema = json.loads((path.parent / first.split("=", 1)[1]).read_text())
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
        checked += 1
    assert checked >= 12


def test_the_answers_schema_accepts_the_documented_file():
    """The answers file of the manual fits, and a misspelt key does not."""
    schema = json.loads((rules_dir() / "schema" / "answers.schema.json").read_text())
    good = {"task": "qa", "budget": {"usd": 50}, "data": {"path": "x.jsonl", "rows": None}, "gpu": "RTX 4090", "signals": ["needs_citations"]}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "budgt": "low"}, schema)
