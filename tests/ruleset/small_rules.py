"""A product in small, of three steps, few rules and one method, so that a finding stands alone."""

from pathlib import Path

FILES = {
    "facts.yaml": (
        """version: 1
facts:
  task: {type: choice, origin: asked, required: true, order: 1, ask: Which job?, values: {write: {}, sort: {}, talk: {}}}
  budget: {type: choice, origin: asked, order: 2, ask: How much?, values: {low: {}, high: {}}}
  rows: {type: number, integer: true, min: 0, origin: asked, order: 3, ask: How many?}
  fits_big: {type: choice, origin: estimated, values: {fits: {}, too_big: {}}}
  fits_small: {type: choice, origin: estimated, values: {fits: {}, too_big: {}}}
  update: {type: choice, origin: concluded, values: {lora: {}, full: {}}}
  way: {type: choice, origin: concluded, values: {long: {}, short: {}}}
  size: {type: choice, origin: concluded, values: {big: {}, small: {}, none: {}}}
  setting: {type: choice, origin: concluded, values: {}}
assume:
  - {id: big-implies-small, never: {fits_big: fits, fits_small: too_big}}
"""
    ),
    "tables.yaml": (
        """version: 1
tiers: {rare: 0, usual: 40, strong: 60}
tables:
  way: {concludes: way, about: how far to go, inputs: [task, budget, rows]}
  size: {concludes: size, about: what fits, inputs: [way, fits_big, fits_small]}
  settings: {concludes: setting, about: values of keys, inputs: [update, rows]}
"""
    ),
    "sources.yaml": "version: 1\nsources:\n  us: {title: Ourselves}\n",
    "updates/lora.yaml": (
        """id: lora
name: LoRA
about: small
keys: {rank: {type: integer, min: 1, default: 8}}
settings:
  - {id: lora/rank, when: {update: lora, rows: [unknown, {lt: 1000}]}, then: {rank: 16}, because: usual, sources: [us]}
  - {id: lora/rank-many, when: {update: lora, rows: {gte: 1000}}, then: {rank: 32}, because: many rows, sources: [us]}
"""
    ),
    "objectives/sft.yaml": "id: sft\nname: SFT\nabout: examples\nkeys: {}\nsettings: []\n",
    "base/steps.yaml": (
        """version: 1
tables:
  way:
    - {id: base/long, tier: rare, when: {}, then: {way: long}, because: otherwise, sources: [us]}
  size:
    - {id: base/nothing, tier: rare, when: {}, then: {size: none}, because: nothing fits, sources: [us]}
    - {id: base/big-too-big, kind: forbid, when: {fits_big: too_big}, then: {size: big}, because: too big, sources: [us]}
    - {id: base/small-too-big, kind: forbid, when: {fits_small: too_big}, then: {size: small}, because: too big, sources: [us]}
"""
    ),
    "document/guide.yaml": (
        """version: 1
tables:
  way:
    - {id: document/sort, tier: usual, when: {task: sort}, then: {way: short}, because: sorting is quick, sources: [us]}
    - {id: document/cheap, tier: strong, when: {budget: low}, then: {way: short}, because: little money, sources: [us]}
  size:
    - {id: document/big, tier: usual, when: {way: long}, then: {size: big}, because: a long way, sources: [us]}
    - {id: document/small, tier: usual, when: {way: short}, then: {size: small}, because: a short way, sources: [us]}
    - {id: document/next, tier: rare, when: {}, then: {size: small}, because: what fits next, sources: [us]}
"""
    ),
    "evidence/rows.yaml": (
        """version: 1
tables:
  way:
    - {id: evidence/many, tier: usual, when: {rows: {gte: 1000}, budget: [unknown, high]}, then: {way: long}, because: many rows, sources: [us]}
    - {id: evidence/talk, tier: strong, when: {task: talk, budget: [unknown, high]}, then: {way: long}, because: talk is long, sources: [us]}
"""
    ),
}


def small_rules(folder: Path, **changed: str) -> Path:
    """The folder of the small product; `evidence_rows="..."` replaces evidence/rows.yaml."""
    root = folder / "rules"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed.get(name.replace("/", "_").removesuffix(".yaml"), text))
    return root
