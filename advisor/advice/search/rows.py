"""What follows from the rows of the data: how long a sequence is, how many optimizer steps there
are, and how many rows are held out.

Rules give the usual batch and number of epochs. If these would leave fewer steps than an objective
wants (`steps:` in its file), the batch is halved until there are enough, and if the smallest batch
does not suffice, the rows are read more often. The learning rate stays: the recipes that the files
cite use one rate at 8 and at 64 rows a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log10
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.advice.facts import WITHOUT_ANSWERS
from advisor.advice.search.settings import BATCH, DEFAULTS, USUAL_BATCH, StageCase
from advisor.advice.types import Chosen
from advisor.ground.types import REPLAY_LEN, DataProfile
from advisor.methods import methods

DEFAULT_SEQ_LEN = 1024
TEXT_LEN, CPU_TEXT_LEN = 2048, 512  # of documents, which may be parted anywhere
# Token counts from characters can be off by this much; a length that cuts rows is worse.
APPROXIMATION_MARGIN = 1.25
# a chat template's own words around a conversation, which a count of characters does not see
TEMPLATE_TOKENS = 64
MULTIPLE = 64
SHORTEST = 256  # tokens: less holds few conversations, and no pieces of documents worth reading
# Of the rows, by step: what a stage may leave out (plan key `truncation`).
LEFT_OUT = (0.01, 0.05)
WHOLE_ROWS = 2.0  # times the mean: if lengths are not known, most rows are shorter

MOST_HELD = 0.2  # of the rows: the rest is needed for training
LARGE_HELD, MOST_ROWS_HELD = 0.01, 1000  # of large sets
SHARE_DIGITS = 4
# Stand in a reason for numbers of steps until the batch is fitted.
STEPS, FEWER = "{steps}", "{steps of the usual epochs}"
LEAVES = f"this leaves about {STEPS}"


# --------------------------------------------------------------------------- how long


def with_lengths(case: StageCase, settings: Mapping[str, Chosen]) -> tuple[dict[str, Chosen], str]:
    """The settings with seq_len, and in words which rows are conceded to be longer."""
    found, context = dict(settings), case.context_tokens
    if case.method.splits_documents:
        because = "documents are split without loss; longer pieces cost more than they teach"
        tokens = CPU_TEXT_LEN if case.on_cpu else TEXT_LEN
        usual = _at_most_context(context, Chosen(value=tokens, because=because))
    else:
        usual = sequence_length(case.profile, context)
    length, left_out = _conceded_length(case, usual)
    replay = found["replay"].value if "replay" in found else None
    if isinstance(replay, Mapping) and length.value < REPLAY_LEN:
        because = f"{length.because}; its own answers to general questions need {REPLAY_LEN}"
        length = _at_most_context(context, Chosen(value=REPLAY_LEN, because=because))
    found["seq_len"] = length
    if left_out:
        found["truncation"] = Chosen(value="drop", because="rows over seq_len are left out")
    return found | _room_for_answers(case, found), left_out


def sequence_length(data: DataProfile | None, context_tokens: int | None) -> Chosen:
    """A length that keeps every row if that is affordable, else all but a hundredth."""
    if data is None or data.tokens is None:
        length, because = DEFAULT_SEQ_LEN, "no data to measure yet: a usual length"
    else:
        tokens = data.tokens
        kept = tokens.kept_whole()
        approximate = "approximation" in tokens.counted_by
        longest = kept.tokens * APPROXIMATION_MARGIN + TEMPLATE_TOKENS
        length = _rounded_up(longest if approximate else kept.tokens)
        unit = "token" if kept.tokens == 1 else "tokens"
        count = f"{kept.tokens:,} {unit}{', approximated' if approximate else ''}"
        of = f" of the {tokens.sampled_rows:,} measured" if tokens.sampled_rows is not None else ""
        because = f"holds {kept.what}{of} ({count}){_longer_rows(data, kept.tokens)}"
    return _at_most_context(context_tokens, Chosen(value=length, because=because))


def _longer_rows(data: DataProfile, kept: int) -> str:
    """What happens to the rows that are longer, with their number if it was counted."""
    found = data.measures.get("longer_rows")
    if data.tokens is None or data.tokens.longest <= kept or not found:
        return ""
    count, rows = found["rows"], found["of"]
    counted = f"{count:,} of {rows:,} rows are" if count else "the few rows outside the sample are"
    return (
        f"; {counted} longer, up to {data.tokens.longest:,}, and left out (truncation: truncate"
        " cuts them instead)"
    )


def _at_most_context(context_tokens: int | None, length: Chosen) -> Chosen:
    """The length, or that of the model's context if it is shorter."""
    if context_tokens is None or length.value <= context_tokens:
        return length
    because = f"the model reads at most {context_tokens:,} tokens"
    return replace(length, value=context_tokens, because=because)


def _conceded_length(case: StageCase, usual: Chosen) -> tuple[Chosen, str]:
    """The length conceded for the sake of memory, and in words which rows are longer."""
    steps, whole, data = case.concessions.shorter, int(usual.value), case.profile
    if not steps or case.method.generates:
        return usual, ""
    length = max(SHORTEST, whole >> steps)
    if case.method.splits_documents:
        because = "memory is short, and documents are split without loss"
        return Chosen(value=length, because=because) if length < whole else usual, ""
    if data is not None and data.tokens is not None:
        length = _rounded_up(data.tokens.p99 if steps == 1 else data.tokens.p95)
        share = LEFT_OUT[steps - 1]
        count = f"at most {share:.0%} of the {data.rows:,} rows, about {share * data.rows:,.0f},"
    else:
        rows, tokens = (case.situation.answers.value(name) for name in ("data_rows", "data_tokens"))
        mean = tokens / rows / case.method.sequences_per_row if rows and tokens else 0.0
        if WHOLE_ROWS * mean > length:
            return usual, ""
        count = "rows (nobody has measured how many)"
    if length >= whole:
        return usual, ""
    because = f"memory is short: {count} that are longer are left out"
    left_out = f"{count} that are longer than the {length:,} tokens that fit are left out"
    return Chosen(value=length, because=because), left_out


def _room_for_answers(case: StageCase, settings: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """How long a stage's own answers may be, and a length for prompt and answer."""
    key, whole = case.method.keys.get("response_tokens"), settings["seq_len"]
    if key is None or case.profile is None or case.profile.tokens is None:
        return {}
    usual, because = int(key.default), "as long as answers usually are"
    if case.profile.kind not in WITHOUT_ANSWERS and case.profile.format != "requests":
        usual, because = min(usual, int(whole.value)), f"{because}, no longer than the rows"
    answer = settings.get("response_tokens") or Chosen(value=usual, because=because)
    because = f"{whole.because}, and an answer of {answer.value:,} tokens"
    both = replace(whole, value=int(whole.value) + int(answer.value), because=because)
    return {"response_tokens": answer, "seq_len": _at_most_context(case.context_tokens, both)}


def _rounded_up(length: float) -> int:
    return max(MULTIPLE, ceil(ceil(length) / MULTIPLE) * MULTIPLE)


# --------------------------------------------------------------------------- how many steps


class RowsRead(Struct, frozen=True, kw_only=True):
    """What follows from the number of rows."""

    # The batch in any case; epochs and held-out share if something sets them.
    settings: Mapping[str, Chosen]
    trained: float | None  # rows, or sequences, of one pass; None: not known
    usual_epochs: float
    mixed: float = 1.0  # steps for each step of its own rows, where general rows are mixed in

    def with_steps(self, settings: Mapping[str, Chosen], per_step: float) -> dict[str, Chosen]:
        """The settings with the steps that they have in the end in their reasons."""
        found = dict(settings)
        if self.trained is None or "epochs" not in found:
            return found
        rows = self.mixed * self.trained
        usual = steps_in(rows, per_step=per_step, epochs=self.usual_epochs)
        words = {STEPS: f"{self.steps(settings, per_step):,}", FEWER: f"{usual:,}"}
        if self.mixed > 1:
            words = {LEAVES: f"{LEAVES} with the general rows", **words}
        for key in {"grad_accum", "micro_batch_size", "epochs"} & found.keys():
            because = found[key].because
            for mark, steps in words.items():
                because = because.replace(mark, steps)
            found[key] = replace(found[key], because=because)
        return found

    def steps(self, settings: Mapping[str, Chosen], per_step: float) -> int | None:
        """Optimizer steps in all with these settings; None: not known how many rows there are."""
        if self.trained is None:
            return None
        epochs = float(settings["epochs"].value) if "epochs" in settings else DEFAULTS["epochs"]
        return steps_in(self.mixed * self.trained, per_step=per_step, epochs=epochs)


def rows_read(
    case: StageCase, settings: Mapping[str, Chosen], profile: DataProfile | None
) -> RowsRead:
    """What follows from the rows of a data file, or without one from those stated."""
    if profile is None:
        rows, tokens = (case.situation.answers.value(name) for name in ("data_rows", "data_tokens"))
    else:
        # A pair is two rows to a stage that learns from single answers.
        is_pair = profile.kind == "preference" and "unpaired_feedback" in case.method.trains_on
        rows = profile.rows * (2 if is_pair else 1)
        tokens = profile.tokens.total if profile.tokens is not None else None
    aim = aim_of(case.objective, classes=case.composition.encoder and not case.is_seq2seq)
    batch, multiple, unit = settings[BATCH], min(case.micro_batches) * case.cards, "row"
    answers = case.concessions.least_module and case.method.generates  # of a step, together
    if (answers or case.concessions.smallest_batch) and aim and not batch.is_own:
        because = f"a limit is not enough for one step of the usual {batch.value}"
        if answers:
            because = f"memory is short, and the usual {batch.value} are answered together"
        least = min(batch.value, aim["smallest_batch"])
        settings = {**settings, BATCH: replace(batch, value=least, because=because, rule=None)}
    if case.method.splits_documents:
        length, unit = settings.get("seq_len"), "sequence"
        rows = None if tokens is None or length is None else tokens / int(length.value)
    return settings_for_rows(settings, aim, rows, multiple=multiple, unit=unit)


def task_settings(case: StageCase) -> list[tuple[DataProfile, RowsRead]]:
    """What follows from the rows of each data file of a stage, in the order of the tasks."""
    found = []
    for profile in case.profiles:
        own = replace(case, facts={**case.facts, "data_rows": profile.rows}, memory_left="enough")
        found.append((profile, rows_read(own, own.settings(), profile)))
    return found


def aim_of(objective: str, *, classes: bool) -> Mapping[str, Any]:
    """What an objective wants of its steps (`steps:` in its file); empty if it says nothing."""
    steps: Mapping[str, Any] = methods().objective(objective).steps
    return (steps.get("classes", steps) if classes else steps) or {}


def settings_for_rows(
    settings: Mapping[str, Chosen],
    aim: Mapping[str, Any],
    rows: float | None,
    *,
    multiple: int,
    unit: str = "row",
) -> RowsRead:
    """What follows from so many rows. What a layer of one's own sets stays.

    Args:
        aim: What the objective wants of its steps.
        rows: Rows, or sequences of documents; None: not known, and nothing changes.
        multiple: The fewest rows that a step can have: the smallest micro-batch on each device.
    """
    batch = settings.get(BATCH, USUAL_BATCH)
    epochs = settings.get("epochs", Chosen(value=DEFAULTS["epochs"], because="one pass"))
    found = {BATCH: batch}
    if unit == "row" and "holdout" not in settings and (held := _held_out_share(rows, aim)):
        found["holdout"] = held
    if "epochs" in settings:
        found["epochs"] = epochs
    trained = None
    if rows is not None:
        share = {**settings, **found}.get("holdout")
        trained = max(1, round(rows * (1 - float(share.value if share else DEFAULTS["holdout"]))))
    if aim and trained:
        found |= _enough_steps(batch, epochs, aim, (trained, unit), multiple)
    return RowsRead(settings=found, trained=trained, usual_epochs=float(epochs.value))


def _enough_steps(
    batch: Chosen, epochs: Chosen, aim: Mapping[str, Any], rows: tuple[float, str], multiple: int
) -> dict[str, Chosen]:
    """The batch and the epochs that leave enough optimizer steps, as far as they differ."""
    (trained, unit), passes, usual = rows, float(epochs.value), int(batch.value)

    def steps(size: int, passes: float = passes) -> int:
        return steps_in(trained, per_step=rows_per_step(size, multiple), epochs=passes)

    size, found = usual, dict[str, Chosen]()
    while (
        not batch.is_own
        and size // 2 >= aim["smallest_batch"]
        and rows_per_step(size, multiple) > multiple
        and steps(size) < aim["least"]
    ):
        size //= 2
    if size != usual:
        because = (
            f"the usual {usual} would leave about {steps(usual):,} optimizer steps from"
            f" {int(trained):,} {unit}s, {LEAVES}"
        )
        found[BATCH] = replace(batch, value=size, because=because, rule=None)
    if steps(size) < aim["least"] and not epochs.is_own:
        more = max(passes, min(aim["most_epochs"], ceil(aim["least"] / steps(size, 1.0))))
        if more != passes:
            because = (
                f"{more:g} passes instead of the usual {passes:g}: about {STEPS} optimizer steps"
                f" instead of {FEWER}"
            )
            found["epochs"] = Chosen(value=int(more), because=because)
    return found


def steps_in(rows: float, *, per_step: float, epochs: float) -> int:
    """Optimizer steps of a training; the last step of a pass may hold fewer rows."""
    return ceil(ceil(rows / per_step) * epochs)


def rows_per_step(batch: int, multiple: int) -> int:
    """The batch as nearly as it divides among devices and micro-batches."""
    return max(1, round(batch / multiple)) * multiple


def held_out(rows: int, wanted: int) -> int:
    """How many rows tell two models apart, at most a fifth; of large sets a hundredth."""
    return min(int(rows * MOST_HELD), max(wanted, min(int(rows * LARGE_HELD), MOST_ROWS_HELD)))


def _held_out_share(rows: float | None, aim: Mapping[str, Any]) -> Chosen | None:
    """The share of rows to hold out; None if the usual share stays."""
    wanted: Any = aim.get("held_out")
    held = held_out(int(rows), wanted) if rows and wanted is not None else 0
    if not rows or not held:
        return None
    share = held / rows
    digits = SHARE_DIGITS - 1 - int(log10(share) // 1)
    of_rows = f"{held:,} of {int(rows):,} rows"
    because = f"{of_rows}, a fifth; small differences need {wanted} to be told"
    if held >= wanted:
        because = f"{of_rows}: enough to tell the model from its base"
    return Chosen(value=round(share, digits), because=because)
