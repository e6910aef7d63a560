"""The results of a finished run on the hub, where the plan's `push_to` says.

Only the files of the result and its model card are uploaded: no checkpoint, no row, no answer. A
result whose checks failed stays here, and so do those of a trial. A failed upload loses nothing:
the next `advise run` uploads, and trains nothing.
"""

from __future__ import annotations

import hashlib
import os
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
    owner, _, repo = push_to.partition("/")
    may_write = f"a token that may write to {owner}, {WITHOUT}"

    def lacking(what: str, hint: str, allowed: str = may_write) -> Checked:
        return Checked(lacking=[Fault(where=AT, what=what, allowed=allowed, hint=hint)])

    if is_offline():
        what = "results are to be uploaded to the hub, and HF_HUB_OFFLINE is set"
        hint = "unset HF_HUB_OFFLINE, or remove the key: `hf upload` does it later"
        return lacking(what, hint, f"a connection, {WITHOUT}")
    if login() is None:
        what = f"this machine has no login for the hub, to upload to {push_to}"
        return lacking(what, "hf auth login, or set HF_TOKEN")
    try:
        who = dict(_api().whoami())
        name, token = str(who.get("name")), (who.get("auth") or {}).get("accessToken") or {}
        owners = [name, *(str(one.get("name")) for one in who.get("orgs") or ())]
        if token.get("role") == "read":
            what = f"the login of {name} may read only, and the result goes to {push_to}"
            return lacking(what, "make one in the hub's settings, then hf auth login")
        if owner not in owners:
            what = f"the login of this machine is {name}, who cannot write to {owner}"
            return lacking(
                what, f"push_to: {name}/{repo}", f"owners it may write to: {', '.join(owners)}"
            )
        names = tuple(task.name for task in plan.tasks) or (None,)
        return Checked(needs=[_what_will_be(repository(push_to, one)) for one in names])
    except MachineNotReady as error:
        return Checked(lacking=error.faults)
    except Exception as error:  # the client has a dozen of its own, and those of its HTTP library
        what = f"the hub does not take this machine's login: {_error_text(error)}"
        return lacking(what, "check the connection, HF_TOKEN and `hf auth whoami`")


def _what_will_be(target: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = _api().repo_info(target).private
        who = "which is private" if is_private else "which EVERYBODY can read"
    except RepositoryNotFoundError:
        who = "a new private repository"
    return f"push_to: the result goes to {target}, {who}, if the checks of the result pass"


# --------------------------------------------------------------------------- after it


def pushed_results(record: RunRecord) -> dict[str, Any]:
    """Stage -> what was noted of its upload (`_push`); runs of before have it under `pushed`."""
    return dict((record.extras or {}).get("hub") or record.extra.get("pushed") or {})


def _why_not(stage: StageRecord) -> str | None:
    """What speaks against the upload of a result; None: nothing."""
    if stage.verdict is None or not stage.verdict.ok:
        return next((one.text for one in stage.checks if not one.ok), "it was not checked")
    return None if stage.files else "an earlier version made it, and did not note its files"


def _digest(stage: StageRecord) -> str:
    lines = (f"{name} {file.sha256}\n" for name, file in sorted((stage.files or {}).items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def push_results(ending: Ending) -> AdviseError | None:
    """Upload each sound result that the hub does not have yet, and note it in run.json; say which
    stay here and why. Returns the error of an upload that failed.

    Raises Stopped if it was asked to stop.
    """
    say, record = ending.say, ending.keeper.record
    if record.max_steps:
        say(f"{AT}: not uploaded: the results of a trial stay here")
    faults: list[Fault] = []
    is_done = record.status == DONE and not record.max_steps
    for stage in last_of_each_task(record.stages) if is_done else ():
        target = repository(ending.plan.extra_key("hub", "push_to"), stage.task)
        folder = ending.run.folder / stage.folder
        why = _why_not(stage) or (ending.failures[0].faults[0].what if ending.failures else None)
        if why is not None:
            say(f"{AT}: {stage.name} was not uploaded to {target}: {why}")
            if stage.files:
                command = upload_command(target, shown_path(folder), stage.files)
                say(f"  to upload it all the same: {command}")
            continue
        before = pushed_results(ending.keeper.record)
        known = before.get(stage.name) or {}
        if (known.get("repository"), known.get("files")) == (target, _digest(stage)):
            continue  # the repository has these very files
        try:
            with waiting(f"uploading {stage.name} to {target}"):
                pushed = _push(stage, target, folder)
        except KeyboardInterrupt:
            stopped = Stopped("stopped while uploading; the result is trained and saved")
            raise with_resume(stopped, ending.again) from None
        except Exception as error:
            what = f"could not upload {stage.name} to {target}: {_error_text(error)}"
            allowed = f"the result is trained and saved: {shown_path(folder)}"
            hint = f"to try again, without training: {ending.again}"
            faults.append(Fault(where=AT, what=what, allowed=allowed, hint=hint))
            continue
        ending.keeper.note_extra("hub", {**before, stage.name: pushed})
        say(f"{stage.name} is on the hub: {pushed['url']}, commit {pushed['commit'][:12]}")
        base = record.base_model(stage)
        if update(stage.update).is_module and (ending.run.folder / base).exists():
            say(f"  it names its base by a folder of this machine, {base}")
    return MachineNotReady(faults=faults) if faults else None


def _push(stage: StageRecord, target: str, folder: Path) -> dict[str, str]:
    """Upload a result in one commit. Returns what run.json keeps; raises what prevents it."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    api = _api()
    names = [*(stage.files or ()), *([CARD] if (folder / CARD).is_file() else [])]
    files = [CommitOperationAdd(name, str(folder / name)) for name in names]
    message = f"Upload the result of stage {stage.plan_stage}"
    disable_progress_bars()
    try:
        # Who made the repository before decided who may read it.
        api.create_repo(target, private=True, exist_ok=True)
        made = api.create_commit(target, files, commit_message=message)
    finally:
        enable_progress_bars()
    return {
        "repository": target,
        "commit": made.oid,
        "url": f"{_endpoint()}/{target}",
        "files": _digest(stage),
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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return mask_secrets(lines[-1] if lines else type(error).__name__)
