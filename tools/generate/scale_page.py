"""Parts of docs/scale.md: 1 to 64 GPUs, by the estimates that `advise` uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from advisor.ground.units import GIB
from advisor.methods.links import link_file
from advisor.ruleset.load import load_rules
from tools.generate.markdown import every_rule, grid
from tools.generate.scale_estimates import (
    CARDS,
    IN_A_MACHINE,
    MODELS,
    ROWS,
    SCHEMES,
    TOKENS,
    Line,
    lines,
    spec_of,
)

ENGINES = "other-engines.yaml"
WORDS = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}
HEADINGS = (
    "model", "GPU", "GPUs", "how", "rows a step", "need of each GPU, GiB", "hours", "tokens/s",
    "times as fast", "US dollars",
)  # fmt: skip
HOST_HEADINGS = ("model", "method", "GPUs", "how", "loading", "training", "checkpoint", "saving")


def parts() -> dict[str, str]:
    """Name -> what is between the marks."""
    return {
        "scale": "\n".join((*_assumed(), "", *grid(HEADINGS, _rows()))),
        "host memory": "\n".join(_host()),
        "engines": "\n".join(_engines()),
    }


def _assumed() -> Iterator[str]:
    """What the tables rest on."""
    yield (
        f"- {ROWS:,} rows with {TOKENS / 1e6:.0f} million tokens together, one task of requests and"
        f" answers; {IN_A_MACHINE} GPUs in each machine"
    )
    yield (
        f"- network between machines: {_network('linked')} Gbit/s for each machine whose GPUs have"
        f" NVLink, {_network('consumer')} Gbit/s for GeForce cards"
    )
    yield from _prices()


def _rows() -> Iterator[list[str]]:
    for model in MODELS:
        for scheme in SCHEMES:
            for card in CARDS:
                found = lines(model, card, scheme)
                first = next((line for line in found if line.fits), None)
                for _, same in groupby(found, key=lambda line: _group(line, found)):
                    what = f"{model.rpartition('-')[2]}, {WORDS[scheme]}"
                    yield [what, card, *_cells(list(same), first)]


def _group(line: Line, found: Sequence[Line]) -> object:
    """Numbers of GPUs that share a row: those on which nothing fits, and those that no plan uses
    beyond a smaller number.
    """
    if not line.fits:
        return "does not fit"
    return next(one.count for one in found if one.fits and _plan(one) == _plan(line))


def _plan(line: Line) -> tuple[object, ...]:
    return line.used, line.strategy, line.cost.duration_s


def _cells(same: Sequence[Line], first: Line | None) -> list[str]:
    line, cost = same[0], same[0].cost
    counts = ", ".join(str(one.count) for one in same)
    memory = cost.memory
    assert memory is not None
    if first is None or not line.fits:
        needs = ", ".join(
            dict.fromkeys(_gib(one.cost.memory.need_bytes) for one in same if one.cost.memory)
        )
        why = " (the whole base, while it loads)" if memory.needed.name == "loading" else ""
        if all(one.cost.refused for one in same):
            needs, why = cost.refused, ""
        return [counts, "does not fit", "", f"{needs}{why}", "", "", "", ""]
    need, low, high = map(_gib, (memory.need_bytes, memory.need_low_bytes, memory.need_high_bytes))
    need = f"{need} ({low} to {high})"
    if cost.fits == "may_fit":
        need += ", may fit"
    duration, times = cost.duration_s or 0.0, cost.times
    hours = _hours(duration)
    if times is not None and times.train_low_s:
        hours += f" ({_hours(times.train_low_s)} to {_hours(times.train_high_s)})"
    how = line.strategy if line.used in (1, line.count) else f"{line.strategy} on {line.used}"
    if (engine := line.stage.engine) is not None:
        how += f" with {engine.name}"
    if len(same) > 1:
        how += f"; more than {line.used} are not used"
    gain = (first.cost.duration_s or 0.0) / duration
    return [
        counts,
        how,
        str(line.rows_per_step),
        need,
        hours,
        f"{line.tokens_per_s:,.0f}",
        f"{gain:.2g}" if line is not first else "1",
        "" if cost.cost_usd is None else f"{cost.cost_usd:,.0f}",
    ]


def _host() -> list[str]:
    """What machines of eight H100 need of their own memory, for each way that divides a model."""
    rows = []
    for model in MODELS:
        for scheme in SCHEMES:
            for line in lines(model, CARDS[1], scheme):
                moments = {one.name: one.size_bytes for one in line.cost.host}
                if (
                    not line.fits
                    or line.count % IN_A_MACHINE
                    or line.used != line.count
                    or not moments
                ):
                    continue
                cells = [
                    _gib(moments[name]) if name in moments else "" for name in HOST_HEADINGS[4:]
                ]
                name = model.rpartition("-")[2]
                rows.append([name, WORDS[scheme], str(line.count), line.strategy, *cells])
    return grid(HOST_HEADINGS, rows)


def _prices() -> Iterator[str]:
    for card in CARDS:
        spec = spec_of(card)
        note = f", {spec.price_note}" if spec.price_note else ""
        if spec.price_usd_per_h is not None:
            yield f"- {card}: ${spec.price_usd_per_h:.2f} an hour for each GPU{note}"


def _engines() -> Iterator[str]:
    """What each rule of that file says, with its sources."""
    ruleset = load_rules()
    for rule in every_rule(ruleset):
        if rule.spot is None or Path(rule.spot.document.name).name != ENGINES:
            continue
        sources = ", ".join(
            f"[{number}]({ruleset.sources[name].url})"
            for number, name in enumerate(rule.sources, 1)
            if ruleset.sources[name].url
        )
        yield f"- `{rule.id}`: {rule.then['say']} (sources: {sources})"


def _network(kind: str) -> str:
    return f"{link_file()['between_machines']['gbit_s'][kind]:,g}"


def _hours(duration_s: float) -> str:
    hours = duration_s / 3600
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def _gib(size_bytes: float) -> str:
    size = size_bytes / GIB
    return f"{size:.1f}" if size < 100 else f"{size:,.0f}"
