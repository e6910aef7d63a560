"""The part of a report on one stage: before and after, curves, costs, checks, sample answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from advisor.ground.files import text_of
from advisor.ground.units import format_duration, format_gib
from advisor.record.run import DONE, ResolvedSettings, StageRecord
from advisor.record.stage import (
    Check,
    Confusion,
    DataCounts,
    Evaluation,
    Expected,
    Measured,
    Metric,
    RewardRecord,
    Times,
)
from advisor.render.bars import Bar, stacked_bars
from advisor.render.blocks import Item
from advisor.render.compare import picked_samples, rule_of_picking
from advisor.render.curves import curve
from advisor.render.html import grid, interval_words, items, number, section, text
from advisor.render.run import COUNTERS, learned_words, speed_words, what_was_trained


def stage_section(
    stage: StageRecord,
    metrics: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Mapping[str, Any]],
    resolved: ResolvedSettings | None,
) -> list[str]:
    title = f"Stage {stage.name}: {what_was_trained(stage)}"
    if stage.status != DONE:
        reason = f": {stage.error.what}" if stage.error else ""
        told = [f"{stage.status}{reason}", *(one.sentence() for one in stage.adjusted)]
        return section(title, items(told), *metric_curves(metrics), _rollouts(rollouts))
    evaluation = stage.evaluation or Evaluation()
    return section(
        title,
        _before_after(evaluation),
        items(stage.held_out.sentences()) if stage.held_out else "",
        items([one.sentence() for one in stage.adjusted]) if stage.adjusted else "",
        grid(REWARD_COLUMNS, reward_rows(stage.rewards or ())),
        *metric_curves(metrics),
        _rollouts(rollouts),
        _costs(stage),
        _data(stage.data),
        _computed_by(resolved),
        _checks(stage.checks),
        _confusion(evaluation.confusion),
        _samples(evaluation),
    )


def _before_after(found: Evaluation) -> str:
    """Before and after by every metric there is, with the interval of the difference."""
    loss = Metric(
        before=found.holdout_loss_before,
        after=found.holdout_loss_after,
        interval=found.holdout_loss_interval,
    )
    perplexity = Metric(before=found.perplexity_before, after=found.perplexity_after)
    named = [("held-out loss", loss), ("perplexity", perplexity)]
    named = [(name, one) for name, one in named if (one.before, one.after) != (None, None)]
    named += [(name.replace("_", " "), one) for name, one in found.metrics.items()]
    if found.general is not None:
        name = f"loss on {found.general.rows or ''} fixed general prompts".replace("  ", " ")
        named.append((name, found.general))
    rows = [
        [name, number(one.before), number(one.after), interval_words(one.interval)]
        for name, one in named
    ]
    return grid(["measured", "before", "after", "difference (95 % interval)"], rows)


def _rollouts(lines: Sequence[Mapping[str, Any]]) -> str:
    table = grid(SAMPLE_COLUMNS, sample_rows(lines))
    return table and f"<h3>Answers that were learned from, at the start and in the end</h3>{table}"


def _costs(stage: StageRecord) -> str:
    """Memory against the limit as bars, and times expected and measured."""
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    rows = []
    if measured.peak_bytes is not None:
        counter = COUNTERS.get(str(measured.counter), "measured")
        estimate = format_gib(expected.counted_bytes) if expected.counted_bytes else ""
        rows.append([f"peak memory ({counter})", estimate, format_gib(measured.peak_bytes)])
    rows += _time_rows(stage)
    if speed := speed_words(measured):
        rows.append(["speed", "", speed])
    if expected.learned is not None:
        rows.append(["learned from earlier runs", learned_words(expected.learned), ""])
    return _memory_bars(expected, measured) + grid(["", "expected", "measured"], rows)


def _time_rows(stage: StageRecord) -> list[list[str]]:
    """Each part of the time, expected and measured."""
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    foreseen, times = expected.times or Times(), stage.times or Times()
    train_s = measured.train_s if measured.train_s is not None else times.train_s
    planned_s = expected.duration_s if expected.duration_s is not None else foreseen.train_s
    parts = (
        ("loading rows and model", foreseen.load_s, times.load_s),
        ("measuring the base before", foreseen.before_s, times.before_s),
        ("training", planned_s, train_s),
        ("saving, checking and measuring after", foreseen.after_s, times.after_s),
        ("in all, when it was finished", foreseen.total_s, times.total_s),
    )
    return [
        [name, *(format_duration(s) if s is not None else "" for s in (before, after))]
        for name, before, after in parts
        if after is not None
    ]


def _memory_bars(expected: Expected, measured: Measured) -> str:
    """Memory expected by its parts, and measured, against what was free."""
    bars = []
    if expected.terms and expected.peak_bytes:
        low, high = expected.low_bytes, expected.high_bytes
        bar = Bar(
            name="expected, of the whole process",
            parts={term.name: term.bytes for term in expected.terms},
            total=expected.peak_bytes,
            band=(low, high) if low and high else None,
        )
        bars.append(bar)
    if measured.peak_bytes is not None:
        counted = COUNTERS.get(str(measured.counter), "measured")
        parts = {f"measured: {counted}": measured.peak_bytes}
        if measured.reserved_bytes and measured.reserved_bytes > measured.peak_bytes:
            parts["held by the allocator besides"] = measured.reserved_bytes - measured.peak_bytes
        bars.append(Bar(name="measured", parts=parts))
    limit, name = expected.limit_bytes or None, "free before the run"
    return stacked_bars("Memory", bars, show=format_gib, limit=limit, limit_name=name)


def _data(data: DataCounts | None) -> str:
    if data is None:
        return ""
    known = {
        "rows trained on": data.train_rows,
        "held out": data.holdout_rows,
        "dropped": data.dropped,
        "truncated": data.truncated,
    }
    counts = [f"{count:,} {name}" for name, count in known.items() if count is not None]
    return items([f"Data: {', '.join(counts)}", *(f"Note: {note}" for note in data.notes)])


def _computed_by(resolved: ResolvedSettings | None) -> str:
    """Which kernels computed the stage, as they were resolved where it ran."""
    if resolved is None or resolved.attention is None:
        return ""
    words = [f"attention {resolved.attention}", f"fused layers {resolved.kernels or 'none'}"]
    words += ["compiled layers"] if resolved.compile else []
    return items([f"Computed with: {', '.join(words)}"])


def _checks(checks: Iterable[Check]) -> str:
    return items(
        f"Check: {check.text}" if check.ok else Item(text=f"Warning: {check.text}", tone="warning")
        for check in checks
    )


def _confusion(table: Confusion | None) -> str:
    """Which class was taken for which, for classifiers."""
    if table is None or not table.labels:
        return ""
    rows = [
        [label, *(f"{count:,}" for count in counts)]
        for label, counts in zip(table.labels, table.counts, strict=False)
    ]
    columns = ["is \\ was called", *table.labels]
    return "<h3>Which class was taken for which</h3>" + grid(columns, rows)


def _samples(found: Evaluation) -> str:
    """Answers picked by rule, side by side: of the base, of the result, and in the data."""
    picked = picked_samples(found)
    if not picked:
        return ""
    rows = []
    for one in picked:
        told = one.sample
        texts = (told.prompt, told.base, told.tuned, told.expected)
        rows.append([one.why, *(" ".join((part or "").split()) for part in texts)])
    rule = f"<p class=quiet>Not trained on; {text(rule_of_picking(picked, found))}.</p>"
    columns = ["", "question", "base answers", "tuned answers", "in the data"]
    return f"<h3>Good and bad answers</h3>{rule}" + grid(columns, rows)


# Of metrics.jsonl, what is drawn: key -> name and unit. A trainer that logs more is drawn by adding
# a line here.
DRAWN = {
    "loss": ("Training loss", ""),
    "learning_rate": ("Learning rate", ""),
    "reward": ("Mean reward", ""),
    "kl": ("KL to the reference", "nats a token"),
    "entropy": ("Entropy", "nats"),
    "clip_fraction": ("Share of clipped tokens", ""),
    "explained_variance": ("Explained variance of the value", ""),
    "clip_ratio_region_mean": ("Share of clipped tokens", ""),
    "frac_reward_zero_std": ("Prompts whose answers all got the same reward", "share"),
    "engine_mismatch": ("Engine mismatch of log-probabilities", "nats"),
    "correction_capped": ("Importance weights that were too large", "share"),
    "response_tokens": ("Length of answers", "tokens"),
    "completions_mean_length": ("Length of answers", "tokens"),
    "completions_clipped_ratio": ("Answers cut at response_tokens", "share"),
    "ended": ("Answers that end by themselves", "share"),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_s": ("Speed", "tokens/s"),
    "memory_bytes": ("Memory", "GiB"),
}

OF_A_REWARD = re.compile(r"rewards/[\w.-]+/mean")  # of several

# Key -> what is drawn in its picture beside it, and its name.
BESIDE = {"loss": ("holdout_loss", "Held-out loss")}


def metric_curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A picture of each number, as SVG."""
    drawn = []
    names = dict.fromkeys(key for line in metrics for key in line if OF_A_REWARD.fullmatch(key))
    own = {key: (f"Mean of reward {key.split('/')[1]}", "") for key in names}
    for key, (name, unit) in {**DRAWN, **own}.items():
        scale = 2**30 if key == "memory_bytes" else 1
        beside = _points(metrics, BESIDE[key][0]) if key in BESIDE else []
        lowest = min(beside, key=lambda point: point[1], default=None)
        drawn.append(
            curve(
                name,
                [(step, value / scale) for step, value in _points(metrics, key)],
                unit=unit,
                beside=(BESIDE[key][1], beside) if beside else None,
                dot=(*lowest, f"lowest at step {lowest[0]:g}") if lowest else None,
            )
        )
    return [svg for svg in drawn if svg]


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have one."""
    return [
        (float(line["step"]), float(line[key]))
        for line in metrics
        if isinstance(line.get(key), int | float) and "step" in line
    ]


MOST_BYTES = 32 * 2**20  # of a file; trainers write about 5 MB
SHOWN_CHARACTERS = 400  # of a text
SAMPLE_COLUMNS = ("step", "which", "prompt", "answer", "reward", "tokens")
REWARD_COLUMNS = ("reward", "weight", "first step", "last step", "spread", "without a score")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The maps in a file of JSON lines; a line that was cut off or damaged is left out."""
    found = []
    for line in text_of(path, errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The lines of rollouts.jsonl; none of a file that is far larger than trainers write it."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return []
    return [entry for entry in json_lines(path) if isinstance(entry.get("step"), int)]


def sample_rows(lines: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The best and the worst answer of the first and of the last step, and one that was cut."""
    steps = sorted({line["step"] for line in lines})
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        own = [line for line in lines if line["step"] == step]
        scored = [line for line in own if isinstance(line.get("reward"), int | float)]
        shown: list[int] = []
        for which, chosen in (
            ("best", max(scored, key=itemgetter("reward"), default=None)),
            ("worst", min(scored, key=itemgetter("reward"), default=None)),
            ("cut", next((line for line in own if line.get("ended") is False), None)),
        ):
            if chosen is not None and id(chosen) not in shown:
                shown.append(id(chosen))
                cut = which != "cut" and chosen.get("ended") is False
                yield _row(step, f"{which}, cut" if cut else which, chosen)


def _row(step: int, which: str, line: Mapping[str, Any]) -> list[str]:
    rewards = line.get("rewards")
    named = rewards if isinstance(rewards, dict) else {}
    parts = [f"{name} {_number(score)}" for name, score in named.items()]
    listed = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    tokens = line.get("tokens")
    return [
        f"{step:,}",
        which,
        _text(line.get("prompt")),
        _text(line.get("answer")),
        f"{_number(line.get('reward'))}{listed}",
        f"{tokens:,}" if isinstance(tokens, int) else "",
    ]


def _text(value: Any) -> str:
    words = " ".join(value.split()) if isinstance(value, str) else ""
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} ..."


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "none"


def _known(value: float | None) -> str:
    return "" if value is None else _number(value)


def reward_rows(records: Sequence[RewardRecord]) -> list[list[str]]:
    """One row for each of several rewards."""
    rows = []
    for one in records:
        spread = "always the same" if one.constant else _known(one.spread)
        missing = "" if one.missing is None else f"{one.missing:.1%}"
        numbers = (_known(one.first), _known(one.last))
        rows.append([one.name, f"{one.weight:g}", *numbers, spread, missing])
    return rows
