"""Every JSON Schema by its file's name, and the writing of them."""

from __future__ import annotations

import json
from pathlib import Path

from advisor.data.amounts import REQUIREMENTS_FILE
from advisor.data.formats import FORMATS_FILE
from advisor.estimate.model.layouts import LAYOUTS_FILE
from advisor.estimate.spec import SPEC
from advisor.ground.extras import extras
from advisor.ground.files import cannot_write, write_atomically
from advisor.ground.resources import rules_dir
from advisor.ground.sources import SOURCES_FILE
from advisor.ground.yaml_files import read_shipped
from advisor.methods.families import FAMILIES_FILE
from advisor.methods.kernels import ACCELERATORS_FILE
from advisor.methods.links import LINKS_FILE
from advisor.methods.load import SHARED_KEYS_FILE
from advisor.methods.other_keys import OTHER_KEYS_FILE
from advisor.methods.remedies import remedy_file
from advisor.methods.rewards import ROLLOUTS_FILE
from advisor.methods.strategies import STRATEGIES_FILE
from advisor.methods.trainers import TRAINER_FILE
from advisor.probe import gpu_files
from advisor.probe.gpu_files import NOT_SUPPORTED_FILE
from advisor.probe.prices import price_file_shape
from advisor.record.run import run_schema
from advisor.record.verdict import VERDICT_FILE
from advisor.ruleset.due import REFRESH_FILE
from advisor.ruleset.model import Ruleset
from advisor.schema import files
from advisor.schema.facts import answers_schema, facts_schema
from advisor.schema.parts import (
    TEXT,
    VERSION,
    Schema,
    closed,
    dumped,
    file_schema,
    head,
    schema_of,
)
from advisor.schema.plan import plan_schema
from advisor.situation.catalogue import MODEL_FILE, SIZES_FILE, suggestions_shape
from advisor.situation.chat_templates import TEMPLATES_FILE
from advisor.situation.scope import SCOPE_FILE

SUFFIX = ".schema.json"
# What a reader of the answer may rely on is written by hand, so that code cannot widen it.
BY_HAND = "advice"


def schema_folder() -> Path:
    """Where the first lines of the shipped YAML files look for their schemas."""
    return rules_dir() / "schema"


def schemas(rules: Ruleset) -> dict[str, Schema]:
    """Name -> schema: `layer` of a file of rules, `answers`, `plan`, ..."""
    sources = rules_dir() / "hardware" / "sources.yaml"
    cited = read_shipped(sources, shape=gpu_files.SOURCES_FILE).data["sources"]
    by_hand = Path(__file__).with_name(f"{BY_HAND}{SUFFIX}").read_text(encoding="utf-8")
    specs: Schema = {"type": "array", "items": schema_of(SPEC)}
    return {
        "facts": facts_schema(rules.facts),
        "tables": files.tables_schema(rules),
        "layer": files.layer_schema(rules),
        "axis": files.method_schema(rules),
        "remedy": file_schema(remedy_file()),
        "scope": file_schema(SCOPE_FILE),
        "accelerators": file_schema(ACCELERATORS_FILE),
        "links": file_schema(LINKS_FILE),
        "keys": file_schema(SHARED_KEYS_FILE),
        "other-keys": file_schema(OTHER_KEYS_FILE),
        "scenarios": files.scenarios_schema(rules),
        "sources": file_schema(SOURCES_FILE),
        "amounts": file_schema(REQUIREMENTS_FILE),
        "formats": file_schema(FORMATS_FILE),
        "verdict": file_schema(VERDICT_FILE),
        "rollouts": file_schema(ROLLOUTS_FILE),
        "refresh": file_schema(REFRESH_FILE),
        "templates": file_schema(TEMPLATES_FILE),
        "hardware": file_schema(gpu_files.gpu_file_shape(cited)),
        "hardware-sources": file_schema(gpu_files.SOURCES_FILE),
        "cuda": file_schema(gpu_files.CUDA_FILE),
        "not-supported": file_schema(NOT_SUPPORTED_FILE),
        "prices": file_schema(
            price_file_shape(gpu_files.citation_shape(cited), gpu_files.catalogue_gpus())
        ),
        "models": file_schema(MODEL_FILE),
        "suggestions": file_schema(suggestions_shape()),
        "sizes": file_schema(SIZES_FILE),
        "families": file_schema(FAMILIES_FILE),
        "layouts": file_schema(LAYOUTS_FILE),
        "strategies": file_schema(STRATEGIES_FILE),
        "trainer": file_schema(TRAINER_FILE),
        "answers": answers_schema(rules.facts),
        "specs": head("Run specs for `advise estimate --specs`", **specs),
        "plan": plan_schema(),
        "run": run_schema(),
        BY_HAND: json.loads(by_hand),
        "error": error_schema(),
        **{
            one.name: file_schema(one.shape)
            for extra in extras().values()
            for one in extra.catalogues()
        },
    }


def error_schema() -> Schema:
    """What --json prints where a command failed: alone, or with the answer that stands."""
    text: Schema = {"type": "string"}
    parts = {
        "what": {**TEXT, "description": "what is wrong"},
        "where": {**text, "description": "file:line:column, flag, key or stage; empty: nowhere"},
        "allowed": {**text, "description": "what would have been right"},
        "hint": {**text, "description": "the next step"},
    }
    return head(
        "Errors of `advise ... --json`: exit codes 2, 4, 5, 6, 70 and 130, and 3 without an answer",
        type="object",
        required=["schema_version", "error"],
        properties={
            "schema_version": VERSION,
            "error": {"type": "array", "minItems": 1, "items": closed(parts, *parts)},
        },
    )


def write_schemas(rules: Ruleset, folder: Path | None = None) -> list[Path]:
    """Write every schema into a folder, made if need be, and say which files those are.

    Raises MachineNotReady where it cannot be written.
    """
    folder = folder or schema_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, way_out="choose another place with --out DIR") from error
    written = []
    for name, schema in schemas(rules).items():
        path = folder / f"{name}{SUFFIX}"
        write_atomically(path, dumped(schema))
        written.append(path)
    return written
