"""Other calculators of training memory: one module each, found by listing this folder.

A module names its PACKAGE, says in NOTE what it has no words for, turns a Job into what is asked
(`arguments`), and holds the text of a child that runs in the package's own environment: IMPORTS,
and BODY, which answers one `item` with (GiB in all, GiB of it that are CUDA context and
fragmentation). HAS_ADAPTERS and HAS_CONTEXT are True unless it says otherwise.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.calculators.job import Arguments, Job

# Reads a list of arguments, prints [total GiB, GiB of context and fragmentation] or a reason for
# each.
CHILD = """
import json, sys
from importlib.metadata import version
{imports}
def gib(item):
{body}
answers = []
for item in json.load(sys.stdin):
    try:
        answers.append([float(value) for value in gib(item)])
    except Exception as error:
        answers.append(f"{{type(error).__name__}}: {{error}}"[:200])
print(json.dumps({{"version": version("{package}"), "answers": answers}}))
"""


@dataclass(frozen=True, kw_only=True)
class Calculator:
    """Another calculator: its package, how it is asked, and what it has no words for."""

    name: str  # of its environment
    package: str
    arguments: Callable[[Job], Arguments]
    imports: str
    body: str
    note: str = ""
    has_adapters: bool = True  # knows LoRA
    has_context: bool = True  # has a line for CUDA context and fragmentation

    @property
    def script(self) -> str:
        return CHILD.format(
            imports=self.imports.strip(), body=self.body.strip("\n"), package=self.package
        )


@lru_cache(maxsize=1)
def calculators() -> tuple[Calculator, ...]:
    """Every calculator in this folder, those that know adapters first."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if module.name == "job":
            continue
        one = importlib.import_module(f"{__name__}.{module.name}")
        found.append(
            Calculator(
                name=module.name,
                package=one.PACKAGE,
                arguments=one.arguments,
                imports=one.IMPORTS,
                body=one.BODY,
                note=one.NOTE,
                has_adapters=getattr(one, "HAS_ADAPTERS", True),
                has_context=getattr(one, "HAS_CONTEXT", True),
            )
        )
    return tuple(sorted(found, key=lambda one: (not one.has_adapters, one.name)))
