"""What a plan has on the hub, downloaded into the cache: `run.sh --set-up` does it once where there
is a connection, so that no machine of a job needs one.

Started as `python -P -m advisor.extras.jobs.fetch plan.yaml`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from advisor.data.read.hub import hub_folder
from advisor.extras.jobs.contents import hub_names
from advisor.ground.content import MODEL_FILES, PICKLED_FILES
from advisor.ground.errors import AdviseError, MachineNotReady
from advisor.ground.terminal import print_message, show_streams
from advisor.plan.read import read_plan


def fetch(plan_path: Path) -> None:
    """Download the models and data sets that the plan names and that are not in its folder.

    Raises AdviseError: InputError for a bad plan or a data set that cannot be read, MachineNotReady
    for a model that cannot be downloaded.
    """
    plan = read_plan(plan_path)
    for what, name in hub_names(plan, plan_path):
        print_message(f"Downloading {what} {name} ...")
        if what == "model":
            _fetch_model(name, plan.revision if name == plan.model else None)
        else:
            hub_folder(name)


def _fetch_model(name: str, revision: str | None) -> None:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(MODEL_FILES)
        )
        if not any(Path(folder).glob("*.safetensors")):
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=[*MODEL_FILES, *PICKLED_FILES]
            )
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
