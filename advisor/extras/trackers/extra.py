"""TensorBoard, Weights & Biases and others get a training's numbers, too (docs/results.md)."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from msgspec import Struct

from advisor.extras.protocol import Checked, Extra
from advisor.ground.errors import Fault
from advisor.ground.resources import install_line
from advisor.ground.types import Tracker

if TYPE_CHECKING:
    from advisor.launch.call import Call


TESTED = ("tensorboard", "wandb")  # what the extra of the package installs


class TrackerKeys(Struct, frozen=True, kw_only=True):
    """Its keys of a plan."""

    trackers: Annotated[
        tuple[Tracker, ...],
        "services that get the numbers of metrics.jsonl, too (docs/results.md#trackers)",
    ] = ()


class TrackersExtra(Extra):
    """The key `trackers`; trainers/keep/progress.py logs."""

    NAME = "trackers"
    HELP = "logs into TensorBoard, Weights & Biases and others, too"
    KEYS = TrackerKeys
    BESIDE_STAGES = True
    INSTALLS = "trackers"

    def check(self, call: Call) -> Checked:
        names = call.run.plan.extra_key("trackers", "trackers") or ()
        return Checked(lacking=list(tracker_faults(names)))


EXTRA = TrackersExtra()

WANDB_HOST = "https://api.wandb.ai"
NOT_SENDING = ("offline", "dryrun", "disabled")  # values of WANDB_MODE


def tracker_faults(names: Sequence[str]) -> Iterator[Fault]:
    """What the plan's trackers lack on this machine."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        yield Fault(
            where="trackers",
            what=f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            allowed="a plan without `trackers` logs into metrics.jsonl and report.html",
            hint=install_line(TrackersExtra.INSTALLS)
            if set(missing) <= set(TESTED)
            else f"pip install {' '.join(missing)}",
        )
    elif "wandb" in names and not _may_send():
        yield Fault(
            where="trackers",
            what="wandb sends its runs as they go, and this machine has no login for it",
            allowed="a login, or WANDB_MODE=offline, which keeps them in the run folder",
            hint="wandb login; or set WANDB_API_KEY; or WANDB_MODE=offline",
        )


def _is_installed(name: str) -> bool:
    # Not by a folder of that name: wandb leaves one where it was started.
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _may_send() -> bool:
    """Whether wandb would find a login: in the environment, or in netrc, as `wandb login` leaves
    it; true if it needs none.
    """
    given = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if os.environ.get("WANDB_MODE", "").lower() in NOT_SENDING or any(map(os.environ.get, given)):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or WANDB_HOST).netloc
    with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        found = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))
        return found.authenticators(host) is not None
    return False
