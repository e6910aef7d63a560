"""The results of a finished run on the hub, where the plan's `push_to` says.

Only the files of the result and its model card are uploaded: no checkpoint, no row, no answer. A
result whose checks failed stays here, and so do those of a trial. A failed upload loses nothing:
the next `advise run` uploads, and trains nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, Fault, MachineNotReady, Stopped
from advisor.ground.files import shown_path
from advisor.ground.hub_cache import is_offline
from advisor.ground.install_line import install_line
from advisor.ground.progress import waiting
from advisor.ground.secrets import masked
from advisor.launch.folder import now
from advisor.launch.hub_model import HUB, login
from advisor.launch.record_keeper import RecordKeeper, Say
from advisor.launch.resume import with_resume
from advisor.methods import update
from advisor.plan.model import Plan
from advisor.plan.push_record import CARD, PushRecord, repository, upload_command
from advisor.plan.record import DONE, Run, RunRecord, StageRecord, last_of_each_task

AT = "push_to"
WITHOUT = "or a plan without `push_to`"


# --------------------------------------------------------------------------- before a run


def check_push(plan: Plan) -> list[str]:
    """What will be uploaded where, in words; empty if nothing is.

    Raises MachineNotReady if this machine could not upload it now: the hub is not reached, there is
    no login, or it may not write there.
    """
    if plan.push_to is None:
        return []
    if is_offline():
        raise MachineNotReady(
            "results are to be uploaded to the hub, and HF_HUB_OFFLINE is set",
            f"a connection, {WITHOUT}",
            "unset HF_HUB_OFFLINE, or remove the key: `hf upload` does it later",
            where=AT,
        )
    if login() is None:
        raise MachineNotReady(
            f"this machine has no login for the hub, to upload to {plan.push_to}",
            f"a token that may write, {WITHOUT}",
            "hf auth login, or set HF_TOKEN",
            where=AT,
        )
    api = _api()
    try:
        _check_writer(api.whoami(), plan.push_to)
        said = [
            f"push_to: {_what_will_be(api, repository(plan.push_to, task))}"
            for task in (tuple(task.name for task in plan.tasks) or (None,))
        ]
    except AdviseError:
        raise
    except Exception as error:
        raise MachineNotReady(
            f"the hub does not take this machine's login: {_said(error)}",
            f"a token that may write to {plan.push_to.partition('/')[0]}, {WITHOUT}",
            "check the connection, HF_TOKEN and `hf auth whoami`",
            where=AT,
        ) from None
    return said


def _check_writer(who: dict[str, Any], push_to: str) -> None:
    """Raise MachineNotReady if the login cannot write to the repository's owner."""
    owner, name = push_to.partition("/")[0], str(who.get("name"))
    owners = [name, *(str(one.get("name")) for one in who.get("orgs") or ())]
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise MachineNotReady(
            f"the login of {name} may read only, and the result goes to {push_to}",
            "a token that may write",
            "make one in the hub's settings, then hf auth login",
            where=AT,
        )
    if owner not in owners:
        raise MachineNotReady(
            f"the login of this machine is {name}, who cannot write to {owner}",
            f"owners it may write to: {', '.join(owners)}",
            f"push_to: {name}/{push_to.partition('/')[2]}",
            where=AT,
        )


def _what_will_be(api: Any, target: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    if_sound = "if the checks of the result pass"
    try:
        found = api.repo_info(target)
    except RepositoryNotFoundError:
        return f"the result goes to {target}, a new private repository, {if_sound}"
    if found.private:
        return f"the result goes to {target}, which is private, {if_sound}"
    return f"the result goes to {target}, which EVERYBODY can read, {if_sound}"


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
        found = (record.pushed or {}).get(self.stage.name)
        return found is not None and (found.repository, found.files) == (
            self.repository,
            self.digest,
        )


def targets(plan: Plan, record: RunRecord) -> Iterator[Target]:
    """The results that the plan wants on the hub: of a finished run that is no trial."""
    if plan.push_to is None or record.status != DONE or record.max_steps:
        return
    for stage in last_of_each_task(record.stages):
        yield Target(stage=stage, repository=repository(plan.push_to, stage.task))


def misses_push(plan: Plan, record: RunRecord) -> bool:
    """Whether a result is finished and sound, and the hub does not have it yet."""
    if Run(folder=Path(), record=record).too_much_lost:
        return False
    return any(one.why_not is None and not one.is_pushed(record) for one in targets(plan, record))


def kept_here(run: Run, plan: Plan) -> Iterator[str]:
    """Which results are not uploaded and why, with the command that does it by hand."""
    if run.record.max_steps and plan.push_to is not None:
        yield f"{AT}: not uploaded: the results of a trial stay here"
    for one in targets(plan, run.record):
        lost = "the benchmarks lost more than max_drop" if run.too_much_lost else None
        why = one.why_not or lost
        if why is None:
            continue
        yield f"{AT}: {one.stage.name} was not uploaded to {one.repository}: {why}"
        if one.stage.files:
            folder = shown_path(run.folder / one.stage.folder)
            command = upload_command(one.repository, folder, one.stage.files)
            yield f"  to upload it all the same: {command}"


def push_results(run: Run, plan: Plan, keeper: RecordKeeper, *, say: Say, again: str) -> Run:
    """The run with what was uploaded in its record, and the error of an upload that failed.

    Args:
        run: As it was finished.
        plan: Its plan, as it stands in the run folder.
        keeper: Of its record.
        again: The command that tries again.

    Raises Stopped if it was asked to stop.
    """
    for line in kept_here(run, plan):
        say(line)
    faults: list[Fault] = []
    for one in targets(plan, run.record):
        folder = run.folder / one.stage.folder
        if one.why_not is None and not run.too_much_lost and not one.is_pushed(run.record):
            try:
                with waiting(f"uploading {one.stage.name} to {one.repository}"):
                    pushed = _push(one, folder)
            except KeyboardInterrupt:
                stopped = Stopped("stopped while uploading; the result is trained and saved")
                raise with_resume(stopped, again) from None
            except Exception as error:
                faults.append(
                    Fault(
                        where=AT,
                        what=f"could not upload {one.stage.name} to {one.repository}:"
                        f" {_said(error)}",
                        allowed=f"the result is trained and saved: {shown_path(folder)}",
                        hint=f"to try again, without training: {again}",
                    )
                )
                continue
            keeper.pushed(one.stage.name, pushed)
            say(f"{one.stage.name} is on the hub: {pushed.url}, commit {pushed.commit[:12]}")
            base = run.record.base_model(one.stage)
            if update(one.stage.update).is_module and (run.folder / base).exists():
                say(f"  it names its base by a folder of this machine, {base}")
    failed = MachineNotReady(faults=faults) if faults else None
    did_nothing = run.already_done and keeper.record is run.record and failed is None
    return replace(run, record=keeper.record, not_pushed=failed, already_done=did_nothing)


def _push(one: Target, folder: Path) -> PushRecord:
    """Upload the files of a result in one commit. Raises whatever keeps it from that."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    api = _api()
    names = [*(one.stage.files or ()), *([CARD] if (folder / CARD).is_file() else [])]
    disable_progress_bars()
    try:
        # Who made the repository before decided who may read it.
        api.create_repo(one.repository, private=True, exist_ok=True)
        made = api.create_commit(
            one.repository,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name))
                for name in names
            ],
            commit_message=f"Upload the result of stage {one.stage.plan_stage}",
        )
    finally:
        enable_progress_bars()
    return PushRecord(
        repository=one.repository,
        commit=made.oid,
        url=f"{_endpoint()}/{one.repository}",
        files=one.digest,
        pushed_at=now(),
    )


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


def _said(error: Exception) -> str:
    """What the hub's client says, on one line and without secrets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return masked(lines[-1] if lines else type(error).__name__)
