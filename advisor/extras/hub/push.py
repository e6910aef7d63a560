"""The results of a finished run on the hub, where the plan's `push_to` says.

Only the files of the result and its model card are uploaded: no checkpoint, no row, no answer. A
result whose checks failed stays here, and so do those of a trial. A failed upload loses nothing:
the next `advise run` uploads, and trains nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.extras.protocol import Checked
from advisor.ground.errors import AdviseError, Fault, MachineNotReady, Stopped
from advisor.ground.files import shown_path
from advisor.ground.progress import waiting
from advisor.ground.resources import install_line
from advisor.ground.terminal import mask_secrets
from advisor.launch.folder import now
from advisor.launch.hub import HUB, login
from advisor.launch.record_keeper import Ending, with_resume
from advisor.methods import update
from advisor.model_files.hub_cache import is_offline
from advisor.plan.model import Plan
from advisor.record.next_step import upload_command
from advisor.record.run import CARD, DONE, RunRecord, StageRecord, last_of_each_task

AT = "push_to"
WITHOUT = "or a plan without `push_to`"
LONGEST_NAME = 96  # characters that the hub allows behind the owner


def repository(push_to: str, task: str | None) -> str:
    """Where a result goes: the plan's repository, of one task `owner/name-task`."""
    return push_to if task is None else f"{push_to}-{task}"


# --------------------------------------------------------------------------- before a run


def check_push(plan: Plan) -> Checked:
    """What will be uploaded where, and what keeps this machine from it."""
    push_to = plan.extra_key("hub", "push_to")
    if push_to is None:
        return Checked()
    try:
        who = _who_is_logged_in(push_to)
        fault = _writer_fault(who, push_to)
        names = tuple(task.name for task in plan.tasks) or (None,)
        said = [] if fault else [_what_will_be(repository(push_to, name)) for name in names]
        return Checked(lacking=[fault] if fault else [], needs=said)
    except MachineNotReady as error:
        return Checked(lacking=error.faults)
    except Exception as error:  # the client has a dozen of its own, and those of its HTTP library
        what = f"the hub does not take this machine's login: {_error_text(error)}"
        allowed = f"a token that may write to {push_to.partition('/')[0]}, {WITHOUT}"
        hint = "check the connection, HF_TOKEN and `hf auth whoami`"
        return Checked(lacking=[Fault(where=AT, what=what, allowed=allowed, hint=hint)])


def _who_is_logged_in(push_to: str) -> dict[str, Any]:
    """What the hub says of this machine's login. Raises MachineNotReady without one."""
    if is_offline():
        what = "results are to be uploaded to the hub, and HF_HUB_OFFLINE is set"
        hint = "unset HF_HUB_OFFLINE, or remove the key: `hf upload` does it later"
        raise MachineNotReady(what, f"a connection, {WITHOUT}", hint, where=AT)
    if login() is None:
        what = f"this machine has no login for the hub, to upload to {push_to}"
        hint = "hf auth login, or set HF_TOKEN"
        raise MachineNotReady(what, f"a token that may write, {WITHOUT}", hint, where=AT)
    return dict(_api().whoami())


def _writer_fault(who: dict[str, Any], push_to: str) -> Fault | None:
    """Why the login cannot write to the repository's owner."""
    owner, _, repo = push_to.partition("/")
    name = str(who.get("name"))
    owners = [name, *(str(one.get("name")) for one in who.get("orgs") or ())]
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        what = f"the login of {name} may read only, and the result goes to {push_to}"
        hint = "make one in the hub's settings, then hf auth login"
        return Fault(where=AT, what=what, allowed="a token that may write", hint=hint)
    if owner not in owners:
        what = f"the login of this machine is {name}, who cannot write to {owner}"
        allowed = f"owners it may write to: {', '.join(owners)}"
        return Fault(where=AT, what=what, allowed=allowed, hint=f"push_to: {name}/{repo}")
    return None


def _what_will_be(target: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = _api().repo_info(target).private
        who = "which is private" if is_private else "which EVERYBODY can read"
    except RepositoryNotFoundError:
        who = "a new private repository"
    return f"push_to: the result goes to {target}, {who}, if the checks of the result pass"


# --------------------------------------------------------------------------- after it


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A result, and the repository that it goes to."""

    stage: StageRecord
    repository: str

    @property
    def why_not(self) -> str | None:
        """What speaks against the upload; None: nothing."""
        stage = self.stage
        if stage.verdict is None or not stage.verdict.ok:
            failed = [check.text for check in stage.checks if not check.ok]
            return failed[0] if failed else "it was not checked"
        if not stage.files:
            return "an earlier version made it, and did not note its files"
        return None

    @property
    def digest(self) -> str:
        """Of the result's files."""
        files = self.stage.files or {}
        lines = (f"{name} {file.sha256}\n" for name, file in sorted(files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def is_pushed(self, record: RunRecord) -> bool:
        """Whether the repository has these very files already."""
        found = pushed_results(record).get(self.stage.name) or {}
        return (found.get("repository"), found.get("files")) == (self.repository, self.digest)


def pushed_results(record: RunRecord) -> dict[str, Any]:
    """Stage -> what was noted of its upload (`_push`); runs of before have it under `pushed`."""
    return dict((record.extras or {}).get("hub") or record.extra.get("pushed") or {})


def _targets(ending: Ending) -> Iterator[Target]:
    """The results that the plan wants on the hub: of a run that is no trial."""
    record = ending.keeper.record
    if record.status == DONE and not record.max_steps:
        for stage in last_of_each_task(record.stages):
            push_to = ending.plan.extra_key("hub", "push_to")
            yield Target(stage=stage, repository=repository(push_to, stage.task))


def push_results(ending: Ending) -> AdviseError | None:
    """Upload each sound result that the hub does not have yet, and note it in run.json; say which
    stay here and why. Returns the error of an upload that failed.

    Raises Stopped if it was asked to stop.
    """
    say = ending.say
    if ending.keeper.record.max_steps:
        say(f"{AT}: not uploaded: the results of a trial stay here")
    faults: list[Fault] = []
    for one in _targets(ending):
        folder = ending.run.folder / one.stage.folder
        why = one.why_not or (ending.failures[0].faults[0].what if ending.failures else None)
        if why is not None:
            say(f"{AT}: {one.stage.name} was not uploaded to {one.repository}: {why}")
            if one.stage.files:
                command = upload_command(one.repository, shown_path(folder), one.stage.files)
                say(f"  to upload it all the same: {command}")
            continue
        record = ending.keeper.record
        if one.is_pushed(record):
            continue
        try:
            with waiting(f"uploading {one.stage.name} to {one.repository}"):
                pushed = _push(one, folder)
        except KeyboardInterrupt:
            stopped = Stopped("stopped while uploading; the result is trained and saved")
            raise with_resume(stopped, ending.again) from None
        except Exception as error:
            what = f"could not upload {one.stage.name} to {one.repository}: {_error_text(error)}"
            allowed = f"the result is trained and saved: {shown_path(folder)}"
            hint = f"to try again, without training: {ending.again}"
            faults.append(Fault(where=AT, what=what, allowed=allowed, hint=hint))
            continue
        ending.keeper.note_extra("hub", {**pushed_results(record), one.stage.name: pushed})
        say(f"{one.stage.name} is on the hub: {pushed['url']}, commit {pushed['commit'][:12]}")
        base = record.base_model(one.stage)
        if update(one.stage.update).is_module and (ending.run.folder / base).exists():
            say(f"  it names its base by a folder of this machine, {base}")
    return MachineNotReady(faults=faults) if faults else None


def _push(one: Target, folder: Path) -> dict[str, str]:
    """Upload a result in one commit. Returns what run.json keeps; raises what prevents it."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    api = _api()
    names = [*(one.stage.files or ()), *([CARD] if (folder / CARD).is_file() else [])]
    files = [CommitOperationAdd(name, str(folder / name)) for name in names]
    message = f"Upload the result of stage {one.stage.plan_stage}"
    disable_progress_bars()
    try:
        # Who made the repository before decided who may read it.
        api.create_repo(one.repository, private=True, exist_ok=True)
        made = api.create_commit(one.repository, files, commit_message=message)
    finally:
        enable_progress_bars()
    return {
        "repository": one.repository,
        "commit": made.oid,
        "url": f"{_endpoint()}/{one.repository}",
        "files": one.digest,
        "pushed_at": now(),
    }


def _api() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the import, which reads it
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MachineNotReady(
            "uploading needs the package huggingface_hub, which is not installed",
            hint=install_line(),
            where=AT,
        ) from None
    return HfApi(endpoint=_endpoint(), token=login())


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _error_text(error: Exception) -> str:
    """What the hub's client says, on one line and without secrets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return mask_secrets(lines[-1] if lines else type(error).__name__)
