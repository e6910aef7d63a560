"""What is wrong with a configuration, worst first: rules as data over what it says.

The rules of one tool stand in its own file, those that hold for every tool in
rules/tools/findings.yaml. A condition names a key of theirs, or a fact: `plan.KEY` (the same in our
words), `data.X`, `model.X`, `machine.X`, `rate.X`. `a | b` holds if one of the two does, and in
`datasets.*.type` the star stands for any item of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from typing import Any

from msgspec import Struct

from advisor.advice.facts import model_facts
from advisor.advice.search.settings import RATE, SETTINGS, axes_of, settings_by_rule
from advisor.estimate.padding import padded_tokens
from advisor.estimate.targets import embedding_matrices
from advisor.extras.other_tools.mapping import ABSENT, CHAT, at_key, flat_stage, is_one
from advisor.extras.other_tools.tool import FINDING, Tool
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, number_words
from advisor.ground.types import DataProfile, Hardware, ModelShape, TokenStats
from advisor.ground.yaml_files import read_shipped
from advisor.methods import objective
from advisor.methods.families import DECODER
from advisor.methods.optimizers import OPTIMIZERS
from advisor.plan.model import Plan
from advisor.ruleset.judge import judge
from advisor.ruleset.load import load_rules
from advisor.situation.of_plan import amounts

SEVERITIES = ("error", "warning", "note")  # from the worst
FINDINGS_FILE = Keys(
    help="What is wrong with the configuration of any tool",
    keys={"version": Choice(values=(1,)), "findings": ListOf(of=FINDING)},
    required=("version", "findings"),
)
UNSET, SET = "unset", "set"  # conditions on whether the file names a key
GIVEN = "given"  # what an `if` of Python takes for true: not null, false, 0 or empty
NOT, WRITTEN, LIKE = "not", "written", "like"  # conditions in a map of their own
EITHER, ANY_ITEM = " | ", "*"
BOUNDS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}
PLACE = re.compile(r"\{([A-Za-z_][\w.]*)\}")


class ToolFinding(Struct, frozen=True, kw_only=True):
    """One thing that is said of a configuration."""

    id: str
    severity: str  # error | warning | note
    text: str
    where: str = ""  # file:line:column
    instead: Mapping[str, Any] | None = None  # their key, or plan.KEY -> the value that mends it
    sources: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()  # what the rule looked at
    refused: bool = False  # the tool does not start with it


class Known(Struct, frozen=True):
    """What the rules may ask for."""

    values: Mapping[str, Any]  # of the file
    defaults: Mapping[str, Any]  # of the tool
    facts: Mapping[str, Any]  # dotted name -> value; a name that is not there is not known

    def value(self, name: str) -> Any:
        """A fact, or the value of a key, given or by default; None where neither is known."""
        if name in self.facts:
            return self.facts[name]
        found = at_key(self.values, name)
        found = at_key(self.defaults, name) if found is ABSENT else found
        return None if found is ABSENT else found

    def is_set(self, name: str) -> bool:
        """Whether the file names the key."""
        return at_key(self.values, name) is not ABSENT

    def items(self, name: str) -> tuple[Any, ...]:
        """The values at a name with `*` for the items of a list; one value is a list of one."""
        first, *rest = name.split(f".{ANY_ITEM}")
        found = [self.value(first)]
        for step in rest:
            found = [item for one in found for item in (one if isinstance(one, list) else [one])]
            if step:
                maps = [one for one in found if isinstance(one, Mapping)]
                found = [at_key(one, step[1:]) for one in maps]
        return tuple(one for one in found if one is not ABSENT and one is not None)


@cache
def general_rules() -> Sequence[Mapping[str, Any]]:
    """Those of every tool."""
    return shipped_rules("findings")


@cache
def shipped_rules(name: str) -> Sequence[Mapping[str, Any]]:
    """Those of a file below rules/tools/."""
    path = rules_dir() / "tools" / f"{name}.yaml"
    return tuple(read_shipped(path, shape=FINDINGS_FILE).data["findings"])


def by_rules(rules: Iterable[Mapping[str, Any]], known: Known) -> Iterator[ToolFinding]:
    """What the rules say whose conditions all hold."""
    for rule in rules:
        if all(holds(known, name, wanted) for name, wanted in rule["when"].items()):
            named = [_fact_or_same(name, known) for name in rule["sources"]]
            named = [one if isinstance(one, list) else [one] for one in named]
            yield ToolFinding(
                id=rule["id"],
                severity=rule["severity"],
                text=fill_values(rule["say"], known),
                instead={
                    key: _fact_or_same(value, known)
                    for key, value in rule.get("instead", {}).items()
                }
                or None,
                sources=tuple(chain.from_iterable(named)),
                asked=tuple(rule["when"]),
                refused="refused" in rule,
            )


def holds(known: Known, name: str, wanted: Any) -> bool:
    """Whether one condition holds: a value, a list of values, `set` or `unset` (whether the file
    names it), `given`, bounds such as `{gt: N}` or `{gt: name of a fact}`, `{not: wanted}`,
    `{like: pattern}`, or `{written: wanted}` of what the file itself names. What is not known
    satisfies only a null.
    """
    if EITHER in name:
        return any(holds(known, one, wanted) for one in name.split(EITHER))
    if isinstance(wanted, Mapping) and set(wanted) == {NOT}:
        return not holds(known, name, wanted[NOT])
    if isinstance(wanted, Mapping) and set(wanted) == {WRITTEN}:
        return known.is_set(name) and holds(known, name, wanted[WRITTEN])
    if wanted in (UNSET, SET):
        return known.is_set(name) is (wanted == SET)
    if ANY_ITEM in name.split("."):
        return any(_fits(known, item, wanted) for item in known.items(name))
    return _fits(known, known.value(name), wanted)


def _fits(known: Known, value: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and wanted == GIVEN:
        return bool(value)
    if not isinstance(wanted, Mapping):
        return is_one(value, wanted)
    if set(wanted) == {LIKE}:
        patterns = wanted[LIKE] if isinstance(wanted[LIKE], list) else [wanted[LIKE]]
        return isinstance(value, str) and any(fnmatchcase(value.lower(), one) for one in patterns)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    bounds = {
        key: known.value(bound) if isinstance(bound, str) else bound
        for key, bound in wanted.items()
    }
    return all(bound is not None and BOUNDS[key](value, bound) for key, bound in bounds.items())


def fill_values(text: str, known: Known) -> str:
    """The text with `{name}` replaced by what is known of it."""
    return PLACE.sub(lambda match: _value_text(known.value(match[1])), text)


def _fact_or_same(value: Any, known: Known) -> Any:
    """The fact that `{name}` alone stands for, else the value."""
    whole = PLACE.fullmatch(value) if isinstance(value, str) else None
    return value if whole is None else known.value(whole[1])


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number_words(value)
    return "not set" if value is None else str(value)


def worst_first(found: Sequence[ToolFinding]) -> tuple[ToolFinding, ...]:
    """Errors, then warnings, then notes; each once, in the order they were found."""
    each = {(one.id, one.where, one.text): one for one in found}
    return tuple(sorted(each.values(), key=lambda one: SEVERITIES.index(one.severity)))


# Names of layers that attention is made of, in the families of the catalogue.
ATTENTION = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv")
)
TEMPLATE, OWN = "template", "own"  # the key of theirs; derived from the model's own


def facts_of(
    plan: Plan, profile: DataProfile | None, shape: ModelShape | None, hardware: Hardware
) -> dict[str, Any]:
    """Dotted name -> value; a name that is not there is not known."""
    stage, gpus = plan.stages[0], hardware.gpus
    targets = stage.options.get("target_modules")
    names = set(targets) if isinstance(targets, list | tuple) else set()
    found: dict[str, Any] = {
        **{f"plan.{key}": value for key, value in flat_stage(plan, stage).items()},
        "plan.targets_attention_alone": bool(names) and names <= ATTENTION,
        "plan.trains_embeddings": bool(embedding_matrices(stage.peft.get("modules_to_save"))),
        "evaluates": stage.holdout > 0,
        "machine.kind": hardware.kind,
        "machine.gpus": len(gpus),
    }
    if stage.optimizer in OPTIMIZERS:
        found["plan.keeps_small_updates"] = OPTIMIZERS[stage.optimizer].keeps_small_updates
    if gpus and (spec := gpus[0].spec) is not None:
        found |= {"machine.name": spec.name, "machine.bfloat16": spec.bf16}
    if shape is not None:
        found["model.params_b"] = round(shape.params / 1e9, 3)
        found |= {"model.mixture": shape.is_mixture, "model.instruct": shape.instruct}
    if profile is not None:
        found |= _of_data(plan, profile)
    return found | _of_rate(plan, profile, shape)


# Where a file says how many answers are generated at a time, and how many to one prompt: the keys
# of the rows, of the steps that share them, of a number that stands for both, and of the answers.
GENERATION = {
    "trl": (
        "per_device_train_batch_size", ("steps_per_generation", "gradient_accumulation_steps"),
        "generation_batch_size", "num_generations",
    ),
    "axolotl": (
        "micro_batch_size", ("gradient_accumulation_steps",),
        "trl.generation_batch_size", "trl.num_generations",
    ),
}  # fmt: skip

EVALUATED = "per_device_eval_batch_size"


def generation_facts(tool: str, known: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Facts that are worked out of the tool's own keys, whether or not a plan can hold them."""
    if tool not in GENERATION:
        return {}
    rows, steps, whole, answers = GENERATION[tool]
    to_one = _number(known, answers)
    shared = next((count for name in steps if (count := _number(known, name))), 1)
    batch = _number(known, whole) or (_number(known, rows) or 1) * shared * processes
    if not to_one:
        return {}
    found: dict[str, Any] = {
        "generations.batch": batch, "generations.left_over": batch % to_one,
    }  # fmt: skip
    if per_step := _number(known, EVALUATED):
        to_one = _number(known, f"{answers}_eval") or to_one
        step = per_step * processes
        found |= {"generations.eval_batch": step, "generations.eval_left_over": step % to_one}
    return found


def _number(known: Mapping[str, Any], name: str) -> int | None:
    value = at_key(known, name)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value > 0 else None


def template_facts(tool: Tool, model: str, named: Any) -> dict[str, Any]:
    """The tool's own template, and whether the named one is another (qwen3_vl is a variant)."""
    usual, _ = tool.template_of(model)
    if not isinstance(usual, str) or usual == OWN or named in (None, "empty"):
        return {}
    stem = usual.removesuffix("_nothink")
    is_variant = named == stem or str(named).startswith(f"{stem}_")
    return {"template.usual": usual, "template.is_another": not is_variant}


def _of_data(plan: Plan, profile: DataProfile) -> dict[str, Any]:
    stage = plan.stages[0]
    found: dict[str, Any] = {
        "data.rows": profile.rows,
        "data.is_chat": profile.format in CHAT,
        "data.kind": profile.kind,
    }
    tokens, rows = amounts(plan, stage, profile, None)
    per_step = stage.effective_batch_size * plan.launch.processes
    if stage.max_steps is not None:
        found["steps"] = stage.max_steps
    elif stage.packing and tokens is not None:
        found["steps"] = max(1, round(tokens / (per_step * stage.seq_len)))
    elif rows is not None and not stage.packing:
        found["steps"] = max(1, round(rows / per_step))
    if profile.tokens is None or not profile.tokens.histogram:
        return found
    over = _share_over(profile.tokens, stage.seq_len)
    found |= {
        "data.longest": profile.tokens.longest,
        "data.over_share": over,
        "data.over_percent": round(100 * over, 1),
    }
    if not stage.packing and not objective(stage.objective).generates:
        padded = padded_tokens(
            profile.tokens, seq_len=stage.seq_len, micro=stage.micro_batch_size,
            per_step=per_step, rows=profile.rows, grouped=stage.group_by_length,
        )  # fmt: skip
        if padded:
            mean = min(profile.tokens.mean, float(stage.seq_len))
            share = max(0.0, 1 - mean / padded)
            found |= {"data.padded_share": share, "data.padded_percent": round(100 * share)}
    return found


def _share_over(tokens: TokenStats, seq_len: int) -> float:
    """Share of the rows over the length; lengths are taken as even within a bin."""
    rows = sum(count for _, count in tokens.histogram) or 1
    over = 0.0
    for longest, count in tokens.histogram:
        low, high = longest // 2, min(longest, tokens.longest)
        if seq_len < high:
            over += count * min(1.0, (high - seq_len) / max(1, high - low))
    return over / rows


def _of_rate(plan: Plan, profile: DataProfile | None, shape: ModelShape | None) -> dict[str, Any]:
    """The learning rate that the rules would set for the same method, with its reason."""
    stage = plan.stages[0]
    ruleset = load_rules()
    facts: dict[str, Any] = {
        "device": "gpu", "architecture": DECODER, "memory_left": "enough",
        **axes_of(stage.objective, stage.update, stage.quantization),
    }  # fmt: skip
    if profile is not None:
        facts["data_rows"] = profile.rows
    if shape is not None:
        facts |= {"params_b": shape.params / 1e9, **model_facts(shape)}
    usual = settings_by_rule(ruleset, facts).get(RATE)
    known = OPTIMIZERS.get(stage.optimizer)
    if usual is None or known is None or known.own_rate:
        return {}
    value = float(usual.value)
    times = stage.learning_rate / value
    placed = judge(ruleset, SETTINGS, facts).settings.get(RATE)
    return {
        "rate.usual": value,
        "rate.times": float(f"{times:.3g}"),
        "rate.parts": float(f"{1 / times:.3g}"),
        "rate.because": usual.because,
        "rate.sources": list(placed[1].sources) if placed is not None else [],
    }
