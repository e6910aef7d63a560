"""How a value of another tool becomes ours, and back, where the two do not mean the same number or
word. Each conversion is a pair of pure functions; rules/tools/TOOL.yaml names it (`as:`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from advisor.ground.errors import AdviseError
from advisor.ground.files import read_at_most
from advisor.methods.optimizers import optimizer, plan_name

TRACKERS = ("tensorboard", "wandb")  # what a plan has words for
MAX_BYTES = 1_000_000  # of a file that a configuration names


class CannotCarry(Exception):
    """A value that the other side has no word for; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a conversion may need to know."""

    folder: Path | None = None  # that relative paths are meant from
    rows: int | None = None  # training rows
    ours: Mapping[str, Any] = field(default_factory=dict)  # what is known of the stage so far


Turn = Callable[[Any, Context], Any]


class Conversion(NamedTuple):
    """Both ways."""

    read: Turn  # theirs -> ours
    write: Turn  # ours -> theirs


def _same(value: Any, context: Context) -> Any:
    return value


def _refused(why: str) -> Turn:
    def refuse(value: Any, context: Context) -> Any:
        raise CannotCarry(why)

    return refuse


def _inverted(value: Any, context: Context) -> Any:
    if not isinstance(value, bool):
        raise CannotCarry("it is neither true nor false")
    return not value


def _write_optimizer(value: Any, context: Context) -> Any:
    named = optimizer(str(value)).transformers
    if named is None:
        raise CannotCarry(f"{value} is an optimizer of our own trainers")
    return named


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CannotCarry("it is no number") from None


def _read_share(value: Any, context: Context) -> Any:
    """Warm-up: below 1 a share, else steps, as transformers reads `warmup_steps`."""
    number = _number(value)
    if 0 <= number < 1:
        return number
    raise CannotCarry(
        f"{number:g} steps are a share of all steps, and how many those are is not known"
    )


def _read_holdout(value: Any, context: Context) -> Any:
    """Held-out rows: below 1 a share, else a number of rows."""
    number = _number(value)
    if 0 <= number < 1:
        return number
    if not context.rows:
        raise CannotCarry(f"{number:g} rows are a share of all rows, whose number is not known")
    return round(number / context.rows, 6)


def _read_steps(value: Any, context: Context) -> Any:
    """Steps between two events: below 1 a share of all steps."""
    number = _number(value)
    if number < 1:
        raise CannotCarry(f"{number:g} is a share of all steps, whose number is not known")
    return int(number)


def _write_whole(value: Any, context: Context) -> Any:
    if float(value) != int(value):
        raise CannotCarry("only a whole number is taken there")
    return int(value)


def _read_names(value: Any, context: Context) -> Any:
    """A list of module names, or one text; a list of one text that stands for all is that text."""
    return "all-linear" if value == ["all-linear"] else value


def _list(value: Any, context: Context) -> Any:
    """A text alone is a list of one there."""
    return [value] if isinstance(value, str) else value


def _read_comma_names(value: Any, context: Context) -> Any:
    names = [name.strip() for name in str(value).split(",") if name.strip()]
    if not names:
        raise CannotCarry("it names no module")
    return names


def _read_trackers(value: Any, context: Context) -> Any:
    """Services by name: those that a plan has a word for; "none" is none of them."""
    listed = value if isinstance(value, list) else [value]
    named = [name for name in map(str, listed) if name != "none"]
    if any(name not in TRACKERS for name in named):
        raise CannotCarry(
            f"a plan's trackers are {' and '.join(TRACKERS)}; `trl: {{report_to: [...]}}` of the"
            " stage hands other services on to transformers"
        )
    return list(dict.fromkeys(named))


def _read_deepspeed(value: Any, context: Context) -> Any:
    """The ZeRO stage in DeepSpeed's own JSON, or in a map that stands in the file."""
    stage = _zero(value, context).get("stage")
    if stage in (2, 3):
        return f"zero{stage}"
    if stage in (0, None):
        return "ddp"
    raise CannotCarry(f"ZeRO stage {stage} has no word in a plan")


def deepspeed_offloads(value: Any, context: Context) -> bool:
    """Whether DeepSpeed's own JSON holds the weights in host memory."""
    try:
        part = _zero(value, context).get("offload_param")
    except CannotCarry:
        return False
    return isinstance(part, Mapping) and part.get("device") in ("cpu", "nvme")


def _zero(value: Any, context: Context) -> Mapping[str, Any]:
    """What is said of ZeRO: by a map, a JSON file, or a name that is not there (zero2.json)."""
    found = value
    if not isinstance(value, Mapping):
        path = (context.folder or Path()) / Path(str(value)).expanduser()
        try:
            found = json.loads(read_at_most(path, MAX_BYTES))
        except (OSError, ValueError, RecursionError, AdviseError):
            name = path.name.lower()
            said = re.search(r"(?:z|zero|stage)([123])", name)
            if not said:
                raise CannotCarry(
                    f"{path.name} is not there, and its name does not say the ZeRO stage"
                ) from None
            offload = {"device": "cpu" if "offload" in name else ""}
            return {"stage": int(said[1]), "offload_param": offload}
        if not isinstance(found, Mapping):
            raise CannotCarry(f"{path.name} holds no map")
    zero = found.get("zero_optimization")
    return zero if isinstance(zero, Mapping) else {}


def _read_answers(value: Any, context: Context) -> Any:
    """Micro-batches of answers as those of prompts, each of which is answered several times."""
    answers = int(context.ours.get("generations") or 1)
    count = int(_number(value))
    if count % answers:
        raise CannotCarry(
            f"answers are counted there, {answers} to a prompt: set micro_batch_size and grad_accum"
            " so that their product is the prompts of a step"
        )
    return count // answers


UNLISTED = _refused("the other side has no word for it")
TURNS: Mapping[str, Conversion] = {
    "same": Conversion(_same, _same),
    "inverted": Conversion(_inverted, _inverted),
    "optimizer": Conversion(lambda value, _: plan_name(str(value)), _write_optimizer),
    "share_of_steps": Conversion(_read_share, _same),
    "share_or_rows": Conversion(_read_holdout, _same),
    "names": Conversion(_read_names, _same),
    "trackers": Conversion(_read_trackers, lambda value, _: list(value) or "none"),
    "answers": Conversion(
        _read_answers, lambda value, context: int(value) * int(context.ours.get("generations") or 1)
    ),
    "name_list": Conversion(
        lambda value, context: _read_names(_list(value, context), context), _list
    ),
    "comma_names": Conversion(
        _read_comma_names, lambda value, _: value if isinstance(value, str) else ",".join(value)
    ),
    "deepspeed": Conversion(_read_deepspeed, _refused("DeepSpeed needs a file of its own")),
    "fsdp": Conversion(
        lambda value, _: "fsdp" if value else None,
        _refused("`accelerate` sets up FSDP, in a file of its own"),
    ),
    "listed": Conversion(UNLISTED, UNLISTED),
    "whole_number": Conversion(_same, _write_whole),
    "whole_steps": Conversion(_read_steps, _same),
}
