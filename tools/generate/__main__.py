"""`python -m tools.generate` writes every generated page, part of a page and picture; `--check`
compares those that are committed.

Committed are the parts of docs/*.md between marks (how wrong the estimates are, what they say of 1
to 64 GPUs, keys of files), docs/decision.svg (questions, and what each answer leads to),
docs/steps.svg (the steps of the decision) and what coding agents read. No rule and no method
changes them, save that docs/decision.svg and docs/scale.md show the answers that the rules give.
One page for each step, with all its rules, and one for the keys of methods go to docs/rules/ and
are not committed: they say what `advise rules` says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from advisor.ground.files import write_atomically
from advisor.ruleset.load import load_rules
from tools.generate import (
    accuracy_page,
    accuracy_time,
    agent_files,
    answers_page,
    cases_table,
    exit_codes_page,
    optimizers_page,
    plan_page,
    questions_picture,
    rule_pages,
    run_record,
    scale_page,
    steps_picture,
)
from tools.generate.markdown import with_parts

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = DOCS / "rules"


def parts() -> dict[str, dict[str, str]]:
    """Page of docs/ -> name -> each part of it that is generated."""
    return {
        "estimates.md": {"memory": accuracy_page.part(), "time": accuracy_time.part()},
        "gpu.md": {"optimizers": optimizers_page.part()},
        "plan.md": plan_page.parts(),
        "programs.md": {
            "answers": answers_page.part(),
            "exit codes": exit_codes_page.part(),
            "record": run_record.part(),
        },
        "scale.md": scale_page.parts(),
    }


def committed() -> dict[Path, str]:
    """Path -> content of every file that is committed, and is generated or holds such a part."""
    return {
        DOCS / "decision.svg": questions_picture.picture(load_rules()),
        DOCS / "steps.svg": steps_picture.picture(load_rules()),
        DOCS / "cases.csv": cases_table.cases_csv(),
        **{
            DOCS / name: with_parts((DOCS / name).read_text("utf-8"), made)
            for name, made in parts().items()
        },
        **agent_files.files(ROOT),
    }


def pages() -> dict[Path, str]:
    """Path -> content of every page about the rules."""
    made = rule_pages.pages(load_rules()) | {"methods.md": plan_page.methods_page()}
    return {PAGES / name: text for name, text in made.items()}


def stale(made: dict[Path, str]) -> list[Path]:
    """Files that are not there or hold something else."""
    return [
        path
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def left_over(made: dict[Path, str]) -> list[Path]:
    """Pages about rules that nothing makes any more."""
    folders = {path.parent for path in made}
    found = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return sorted(path for path in found if path not in made)


def main() -> int:
    if "--check" in sys.argv:
        old = stale(committed())
        for path in old:
            print(f"{path} is stale: run python -m tools.generate")
        return 1 if old else 0
    made = pages()
    for path, text in (made | committed()).items():
        if stale({path: text}):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
            print(f"wrote {path}")
    for path in left_over(made):
        path.unlink()
        print(f"removed {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
