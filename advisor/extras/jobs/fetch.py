"""What a plan has on the hub, downloaded into the cache: `run.sh --set-up` does it once where there
is a connection, so that no machine of a job needs one.

Started as `python -P -m advisor.extras.jobs.fetch plan.yaml`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from advisor.data.read.hub import hub_folder, is_hub_id
from advisor.ground.errors import AdviseError, MachineNotReady
from advisor.ground.terminal import print_message, show_streams
from advisor.plan.entries import with_paths
from advisor.plan.model import Plan
from advisor.plan.read import read_plan, resolve_path
from advisor.record.content import MODEL_FILES, PICKLED_FILES

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")


def data_of(plan: Plan) -> set[str]:
    """The paths of a plan that are data."""
    return {
        *([plan.data.path] if plan.data else []),
        *(stage.data for stage in plan.stages if stage.data is not None),
        *(task.data.path for task in plan.tasks),
    }


def hub_kind(plan: Plan, text: str) -> str | None:
    """ "model" or "data set" for a path of a plan that may be a name on the hub."""
    server = plan.launch.vllm
    if text.endswith((".yaml", ".yml")) or (server is not None and text == server.python):
        return None
    if text in data_of(plan):
        return "data set" if is_hub_id(text) else None
    return "model" if MODEL_ID.fullmatch(text) else None


def hub_names(plan: Plan, plan_path: Path) -> list[tuple[str, str]]:
    """(model or data set, its name) of what a plan names and no file or folder is called."""
    found: dict[tuple[str, str], None] = {}

    def noted(text: str) -> str:
        kind = hub_kind(plan, text)
        if kind is not None and not resolve_path(plan_path, text).exists():
            found[kind, text] = None
        return text

    with_paths(plan, noted)
    return list(found)


def fetch(plan_path: Path) -> None:
    """Download what the plan names on the hub. Raises InputError, MachineNotReady."""
    plan = read_plan(plan_path)
    for kind, name in hub_names(plan, plan_path):
        print_message(f"Downloading {kind} {name} ...")
        if kind == "model":
            _fetch_model(name, plan.revision if name == plan.model else None)
        else:
            hub_folder(name)


def _fetch_model(name: str, revision: str | None) -> None:
    import huggingface_hub

    try:
        for patterns in (MODEL_FILES, (*MODEL_FILES, *PICKLED_FILES)):
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns)
            )
            if any(Path(folder).glob("*.safetensors")):
                return
    except Exception as error:  # the package has a dozen of its own, and those of its HTTP library
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise MachineNotReady(
            f"cannot be downloaded: {first}",
            where=f"model {name}",
            hint="check the connection; for a private or gated model: hf auth login",
        ) from None


def main() -> int:
    """Returns the exit code."""
    show_streams()
    try:
        fetch(Path(sys.argv[1]))
    except AdviseError as error:
        print_message(f"error: {error.text()}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
