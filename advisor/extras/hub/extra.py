"""Uploads the results of a run to the model hub (docs/results.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Struct

from advisor.extras.protocol import Checked, Extra
from advisor.ground.errors import AdviseError
from advisor.ground.shape import Text
from advisor.plan.checks import Report

if TYPE_CHECKING:
    from advisor.launch.call import Call
    from advisor.launch.record_keeper import Ending

REPOSITORY = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"


class HubKeys(Struct, frozen=True, kw_only=True):
    """Its keys of a plan."""

    push_to: Annotated[
        str | None,
        Text(pattern=REPOSITORY, such_as="my-name/my-model"),
        "repository of the hub that the result is uploaded to if its checks passed; a new one is"
        " private, and of a plan with tasks each has its own (docs/results.md#trackers)",
    ] = None


class Hub(Extra):
    """The key `push_to`."""

    NAME = "hub"
    HELP = "uploads results to the model hub"
    KEYS = HubKeys
    BESIDE_STAGES = True

    def check_plan(self, data: Mapping[str, Any], report: Report) -> None:
        target, tasks = data.get("push_to"), data.get("tasks")
        if not isinstance(target, str) or not isinstance(tasks, list):
            return
        from advisor.extras.hub.push import LONGEST_NAME, repository

        for task in (task.get("name") for task in tasks if isinstance(task, dict)):
            name = repository(target, str(task))
            if len(name.rpartition("/")[2]) > LONGEST_NAME:
                report(
                    ("push_to",),
                    f"the result of task {task} would go to {name}, whose name is too long",
                    f"{LONGEST_NAME} characters behind the owner, with the task's name",
                )

    def network(self, keys: HubKeys) -> str | None:
        return "the result is uploaded to the hub (push_to)" if keys.push_to else None

    def check(self, call: Call) -> Checked:
        from advisor.extras.hub.push import check_push

        return (
            Checked() if call.options.dry_run or call.run.max_steps else check_push(call.run.plan)
        )

    def finished(self, ending: Ending) -> AdviseError | None:
        if ending.plan.extra_key("hub", "push_to") is None:
            return None
        from advisor.extras.hub.push import push_results

        return push_results(ending)


EXTRA = Hub()
