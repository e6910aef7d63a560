"""The published JSON Schema says what the reader does."""

import jsonschema
import pytest
import yaml

from advisor.plan.write import plan_text
from advisor.schema.plan import plan_schema
from tests.plan.test_read import GOOD
from tests.plan.test_write import PLAN


@pytest.fixture(
    scope="module", params=[jsonschema.Draft202012Validator, jsonschema.Draft7Validator]
)
def validator(request):
    """A validator of the draft the schema names, and of the older one that many editors know."""
    schema = plan_schema()
    request.param.check_schema(schema)
    return request.param(schema)


def test_good_plans_are_valid(validator):
    """What the reader takes and what the writer writes is valid."""
    validator.validate(yaml.safe_load(GOOD.replace("2e-4", "2.0e-4")))
    validator.validate(yaml.safe_load(plan_text(PLAN)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rank: 8", "rnak: 8"),
        ("rank: 8", "rank: 0"),
        ("update: lora\n    quantization: nf4", "update: full"),
        ("quantization: nf4", "double_quantization: true"),
        ("name: shop", "name: A b"),
        ("loss_on: all", "loss_on: x"),
    ],
)
def test_what_the_reader_refuses_is_flagged_in_the_editor(validator, old, new):
    """Unknown, out-of-range and dead keys are invalid in the schema too."""
    assert list(
        validator.iter_errors(yaml.safe_load(GOOD.replace("2e-4", "2.0e-4").replace(old, new)))
    )


def test_every_key_says_what_it_means():
    """An editor shows a sentence beside each key, also where several methods declare it."""
    schema = plan_schema()
    keys = {**schema["properties"], **schema["$defs"]["Stage"]["properties"]}
    assert len(keys) > 80
    assert [name for name, one in keys.items() if not one.get("description")] == []
