"""How names of models as people write them in public are read (tests/data_cases/model_names.yaml).

`python -m tests.advice.public_names` prints how many are resolved, asked about, told or wrong, and
what is wrong, of one half; with `aside` the numbers of the other one too, which nobody looks at
while names are mended.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from advisor.situation.catalogue import tail_of, words_of
from advisor.situation.names import look_up_name, out_of_scope, shape_meant
from tests.advice.public_situations import CASES

NAMES = CASES / "model_names.yaml"
READ = re.compile(
    r"read as (\S+?)[;,]|taken as (?:a copy of )?(\S+)|^(\S+): it[s ]|read as (\S+)$", re.M
)


def public_names() -> list[dict[str, Any]]:
    """Every name of the list."""
    return list(yaml.safe_load(NAMES.read_text(encoding="utf-8"))["names"])


def is_open(entry: Mapping[str, Any]) -> bool:
    """Whether a name is of the half that may be looked at."""
    return hashlib.sha256(entry["spelling"].encode()).digest()[-1] % 2 == 0


def verdict(entry: Mapping[str, Any]) -> str:
    """resolved, original (the model that a rounded copy was made from is named), asked, told (of
    another kind, closed or no model) or wrong.
    """
    spelling, expected = entry["spelling"], entry["expected"]
    outside = out_of_scope(spelling)
    if outside is not None:
        fits = {
            "hub": ("vision_model", "embedding_model"),
            "ask": ("vision_model",),
            "closed": ("closed_model",),
            "not_a_model": ("library", "embedding_model"),
        }
        if outside.kind == "packed_file":
            return "original" if _same(entry, outside.instead) else "wrong"
        return "told" if outside.kind in fits[expected] else "wrong"
    shape, notes = shape_meant(spelling)
    said = "\n".join(notes)
    read = [one for found in READ.findall(said) for one in found if one]
    named = re.findall(r"[\w.-]+/[\w.-]+", said.split(" mean ", 1)[-1]) if " mean " in said else ()
    if expected == "hub" and shape is not None and _same(entry, read[:1] or [shape.id]):
        return "resolved"
    several = re.findall(r"[\w.-]+/[\w.-]+", said) if "answer is about one model" in said else named
    asks = "/" in spelling or look_up_name(spelling).id is None
    if expected == "hub":
        return "asked" if asks and _same(entry, several) else "wrong"
    if expected == "ask" and not entry.get("ids"):
        return "asked" if shape is None else "wrong"
    return "asked" if expected == "ask" and asks and _same(entry, [*several, *read]) else "wrong"


def _same(entry: Mapping[str, Any], ids: Any) -> bool:
    """Whether one of the models is one that was meant, whoever owns it now; of several that may be
    meant the base model stands for the one that follows instructions too.
    """
    asked = entry["expected"] == "ask"

    def key(hub_id: str) -> Any:
        return words_of(hub_id) if asked else tail_of(hub_id).lower().removeprefix("meta-")

    return bool({key(one) for one in ids} & {key(one) for one in entry["ids"]})


if __name__ == "__main__":
    outcomes = [(entry, verdict(entry)) for entry in public_names()]
    for half, wanted in (("open", True), ("aside", False))[: 1 + ("aside" in sys.argv)]:
        print(half, dict(Counter(found for entry, found in outcomes if is_open(entry) is wanted)))
    for entry, found in outcomes:
        if is_open(entry) and found == "wrong":
            print("wrong:", entry["spelling"], entry.get("ids", entry["expected"]))
