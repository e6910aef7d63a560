"""Every generated file in one place: `python -m tests.generated` writes them, `--check` only
compares.

JSON Schemas for editors and scripts under rules/schema/; pages and a picture of the decision under
docs/rules/; how wrong the estimates are, docs/accuracy.md.
"""

import sys
from pathlib import Path

from advisor.ground.files import write_atomically
from advisor.ground.resources import rules_dir
from advisor.plan.schema import schema_text
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import Ruleset
from tests.generating import (
    accuracy,
    decision_svg,
    docs,
    run_record,
    schema_amounts,
    schema_catalogues,
    schema_facts,
    schemas,
)
from tests.generating.schema_parts import dumped

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "rules"
SHARED = {ROOT / "docs"}  # pages written by hand stand there too
BY_HAND = {
    "advice.schema.json"
}  # says what a reader of the answer may rely on, so code must not widen it


def generated_schemas(rules: Ruleset) -> dict[str, str]:
    """File name -> text of every schema."""
    made = {
        "facts": schema_facts.facts_schema(rules),
        "tables": schemas.tables_schema(rules),
        "layer": schemas.layer_schema(rules),
        "axis": schemas.axis_schema(rules),
        "sources": schemas.sources_schema(),
        "scenarios": schemas.scenarios_schema(rules),
        "answers": schema_facts.answers_schema(load_facts()),
        "amounts": schema_amounts.amounts_schema(),
        "hardware": schema_catalogues.hardware_schema(),
        "hardware-sources": schema_catalogues.hardware_sources_schema(),
        "cuda": schema_catalogues.cuda_schema(),
        "prices": schema_catalogues.prices_schema(),
        "models": schema_catalogues.models_schema(),
        "suggestions": schema_catalogues.suggestions_schema(),
        "sizes": schema_catalogues.sizes_schema(),
    }
    return {f"{name}.schema.json": dumped(schema) for name, schema in made.items()} | {
        "plan.schema.json": schema_text()
    }


def generated() -> dict[Path, str]:
    """Path -> content of every generated file."""
    rules = load_rules()
    made = {rules_dir() / "schema" / name: text for name, text in generated_schemas(rules).items()}
    made |= {PAGES / name: text for name, text in docs.pages(rules).items()}
    return made | {
        PAGES / "decision.svg": decision_svg.picture(rules),
        ROOT / "docs" / "accuracy.md": accuracy.page(),
        ROOT / "docs" / "run.md": run_record.run_page(),
    }


def left_over(made: dict[Path, str]) -> list[Path]:
    """Files beside the generated ones that nothing makes any more."""
    folders = sorted({path.parent for path in made} - SHARED)
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path not in made and path.name not in BY_HAND
    ]


def main() -> int:
    made = generated()
    stale = [
        path
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    extra = left_over(made)
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path} is stale: run python -m tests.generated")
        for path in extra:
            print(f"{path} is made by nothing: run python -m tests.generated, which removes it")
        return 1 if stale or extra else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, made[path])
        print(f"wrote {path}")
    for path in extra:
        path.unlink()
        print(f"removed {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
