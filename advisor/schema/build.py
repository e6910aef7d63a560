"""Every file below rules/ and every document by the name of its JSON Schema, and what is wrong with
the files that commands read beside the rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from advisor.data.amounts import REQUIREMENTS_FILE, data_requirements
from advisor.data.formats import FORMATS_FILE, formats
from advisor.estimate.model.layouts import LAYOUTS_FILE, layouts
from advisor.estimate.spec import SPEC
from advisor.ground.errors import Fault, InputError
from advisor.ground.extras import Catalogue, extras
from advisor.ground.files import cannot_write, write_atomically
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import SOURCES_FILE, read_shipped
from advisor.methods import (
    engines,
    families,
    kernels,
    links,
    optimizers,
    other_keys,
    rewards,
    strategies,
    trainers,
)
from advisor.methods.load import SHARED_KEYS_FILE
from advisor.methods.remedies import remedy, remedy_file
from advisor.probe import gpu_files, gpu_rows
from advisor.probe.prices import price_file_shape
from advisor.record.run import DryRunRecord, RunRecord
from advisor.record.verdict import VERDICT_FILE, limits
from advisor.ruleset.lint import REFRESH_FILE
from advisor.ruleset.model import Ruleset
from advisor.schema.parts import (
    TEXT,
    VERSION,
    Schema,
    closed,
    dumped,
    file_schema,
    head,
    json_file_schema,
    schema_of,
)
from advisor.schema.rules import (
    answers_schema,
    facts_schema,
    layer_schema,
    method_schema,
    plan_schema,
    scenarios_schema,
    tables_schema,
)
from advisor.situation.catalogue import (
    MODEL_FILE,
    NAMED_FILE,
    NOT_ORGANISATIONS,
    SIZES_FILE,
    catalogue_entry,
    named_file,
    organisation_models,
    suggested_models,
    suggestions_shape,
    typical_sizes,
)
from advisor.situation.names import SCOPE_FILE, scope_file
from advisor.situation.suggestions import TEMPLATES_FILE, template_families

SUFFIX = ".schema.json"
# What a reader of the answer may rely on is written by hand, so that code cannot widen it.
BY_HAND = "advice"
# Each file or folder of files beside the rules: its schema, its shape, and who reads all of it.
CATALOGUES = (
    Catalogue("cuda", gpu_files.CUDA_FILE, (gpu_files.cuda_facts,)),
    Catalogue("links", links.LINKS_FILE, (links.links,)),
    Catalogue("accelerators", kernels.ACCELERATORS_FILE, (kernels.accelerators,)),
    Catalogue("not-supported", gpu_files.NOT_SUPPORTED_FILE, (gpu_files.not_supported_devices,)),
    Catalogue("sizes", SIZES_FILE, (typical_sizes,)),
    Catalogue("named", NAMED_FILE, (named_file,)),
    Catalogue("families", families.FAMILIES_FILE, (families.families,)),
    Catalogue("layouts", LAYOUTS_FILE, (layouts,)),
    Catalogue("strategies", strategies.STRATEGIES_FILE, (strategies.strategies,)),
    Catalogue("optimizers", optimizers.OPTIMIZERS_FILE, (optimizers.optimizer_file,)),
    Catalogue("engines", engines.ENGINES_FILE, (engines.engines,)),
    Catalogue("trainer", trainers.TRAINER_FILE, (trainers.trainers,)),
    Catalogue("rollouts", rewards.ROLLOUTS_FILE, (rewards.rollout_warnings,)),
    Catalogue("amounts", REQUIREMENTS_FILE, (data_requirements,)),
    Catalogue("formats", FORMATS_FILE, (formats,)),
    Catalogue("templates", TEMPLATES_FILE, (template_families,)),
    Catalogue("verdict", VERDICT_FILE, (limits,)),
    Catalogue("scope", SCOPE_FILE, (scope_file,)),
    Catalogue("other-keys", other_keys.OTHER_KEYS_FILE, (other_keys.other_keys,)),
    Catalogue("keys", SHARED_KEYS_FILE, ()),
    Catalogue("sources", SOURCES_FILE, ()),
    Catalogue("refresh", REFRESH_FILE, ()),
    Catalogue("hardware-sources", gpu_rows.SOURCES_FILE, ()),
    Catalogue("models", MODEL_FILE, ()),
)


def _catalogues() -> Iterator[Catalogue]:
    yield Catalogue("suggestions", suggestions_shape(), (suggested_models,))
    yield from CATALOGUES
    remedies = (partial(remedy, stem) for stem in _stems("remedies"))
    yield Catalogue("remedy", remedy_file(), tuple(remedies))
    for extra in extras().values():
        yield from extra.catalogues()


def schemas(rules: Ruleset) -> dict[str, Schema]:
    """Name -> schema: `layer` of a file of rules, `answers`, `plan`, ..."""
    sources = rules_dir() / "hardware" / "sources.yaml"
    cited = read_shipped(sources, shape=gpu_rows.SOURCES_FILE).data["sources"]
    prices = price_file_shape(gpu_rows.citation_shape(cited))
    return {
        "facts": facts_schema(rules.facts),
        "tables": tables_schema(rules),
        "layer": layer_schema(rules),
        "axis": method_schema(rules),
        "scenarios": scenarios_schema(rules),
        "hardware": file_schema(gpu_rows.gpu_file_shape(cited)),
        "prices": file_schema(prices),
        "answers": answers_schema(rules.facts),
        "specs": head("Run specs for `advise estimate --specs`", specs_schema()),
        "plan": plan_schema(),
        "run": json_file_schema(RunRecord, "Record of a run of advise (run.json)"),
        "dry_run": json_file_schema(DryRunRecord, "Record of a dry run of advise (dry_run.json)"),
        BY_HAND: advice_schema(),
        "error": error_schema(),
        **{one.name: file_schema(one.shape) for one in _catalogues()},
    }


def advice_schema() -> Schema:
    """What a reader of the answer may rely on."""
    by_hand: Schema = json.loads(Path(__file__).with_name(f"{BY_HAND}{SUFFIX}").read_text("utf-8"))
    return by_hand


def specs_schema() -> Schema:
    """A list of run specs."""
    return {"type": "array", "items": schema_of(SPEC)}


def error_schema() -> Schema:
    """What --json prints where a command failed: alone, or with the answer that stands."""
    text: Schema = {"type": "string"}
    parts = {
        "what": {**TEXT, "description": "what is wrong"},
        "where": {**text, "description": "file:line:column, flag, key or stage; empty: nowhere"},
        "allowed": {**text, "description": "what would have been right"},
        "hint": {**text, "description": "the next step"},
    }
    codes = "exit codes 2, 4, 5, 6, 70 and 130, and 3 without an answer"
    errors = {"type": "array", "minItems": 1, "items": closed(parts, *parts)}
    keys = {"schema_version": VERSION, "error": errors}
    schema: Schema = {"type": "object", "required": list(keys), "properties": keys}
    return head(f"Errors of `advise ... --json`: {codes}", schema)


def write_schemas(rules: Ruleset, folder: Path | None = None) -> list[Path]:
    """Write every schema into a folder, and return the paths. Raises MachineNotReady."""
    folder = folder or rules_dir() / "schema"
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


def catalogue_faults() -> tuple[Fault, ...]:
    """Every fault of the files beside the rules, each once, found by the readers of commands."""
    found: dict[str, Fault] = {}
    organisations = [stem for stem in _stems("models") if stem not in NOT_ORGANISATIONS]
    readers: tuple[Callable[[], object], ...] = (
        gpu_files.catalogue_gpus,  # all GPUs and prices
        *(read for catalogue in _catalogues() for read in catalogue.readers),
        *(partial(_models, stem) for stem in organisations),
    )
    for read in readers:
        try:
            read()
        except InputError as error:
            found |= {fault.headline: fault for fault in error.faults}
    return tuple(found.values())


def _models(stem: str) -> None:
    for hub_id in organisation_models(stem):
        catalogue_entry(hub_id)


def _stems(folder: str) -> list[str]:
    return sorted(path.stem for path in (rules_dir() / folder).glob("*.yaml"))
