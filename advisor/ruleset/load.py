"""The rule set of an answer: the shipped layers, lowest first, then each file of the user's.

Layers: `base` (what each update and objective sets by default), `document` (the user's guide),
`evidence`, then each file named with --rules or ADVISE_RULES. Without such a file the set is the
one that was kept when its files were last read (layers.py).
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from msgspec.structs import replace

from advisor.ground.resources import method_roots, rules_dir
from advisor.ground.yaml_files import read_derived
from advisor.ruleset.model import SHIPPED_LAYERS, Ruleset


@cache
def load_rules(
    layers: tuple[str, ...] = SHIPPED_LAYERS,
    overlays: tuple[Path, ...] = (),
    *,
    root: Path | None = None,
) -> Ruleset:
    """The merged rule set of the shipped `layers` and the `overlays`, in order.

    Raises InputError with every fault of every file.
    """
    if root is not None or overlays or len(method_roots()) > 1:
        return _read(layers, overlays, root or rules_dir())
    folders = ("keys", "updates", "objectives", "base", *layers)
    files = [path for folder in folders for path in sorted((rules_dir() / folder).glob("*.yaml"))]
    single = (rules_dir() / f"{name}.yaml" for name in ("facts", "tables", "sources"))
    found: Ruleset = read_derived(
        f"rules {layers}", (*single, *files), partial(_read, layers, (), rules_dir()), Ruleset
    )
    return found


def _read(layers: tuple[str, ...], overlays: tuple[Path, ...], root: Path) -> Ruleset:
    from advisor.ruleset.layers import read_rules  # most answers need none of it

    return read_rules(layers, overlays, root)


def only_layer(ruleset: Ruleset, layer: str) -> Ruleset:
    """The rule set with one layer alone on top of the base, without reading files again."""
    rules = {
        table: tuple(rule for rule in listed if rule.layer in ("base", layer))
        for table, listed in ruleset.rules.items()
    }
    return replace(ruleset, rules=rules, layers=(layer,), overlays=())
