"""What a tool is asked to do with a file: the word after its name on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.ground.errors import InputError, unknown_name
from advisor.other_tools.tables.keys import ToolRelease, keys_of

TRAIN, MERGE, CHAT, EVALUATE = "train", "merge", "chat", "evaluate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What the tool is asked to do."""

    name: str  # one of the release's commands: sft, train, ...
    purpose: str = TRAIN  # train | merge | chat | evaluate
    assumed: str = ""  # a sentence, where the file does not say it
    likely: tuple[str, ...] = ()  # several, between which the keys do not decide


def command_of(
    release: ToolRelease, values: Mapping[str, Any], *, stated: str | None = None
) -> Command:
    """The command that a file is for. Raises InputError for an unknown stated one."""
    known = tuple(release.commands)
    if stated is not None:
        if stated not in known:
            raise InputError(faults=[unknown_name("command", stated, known, at="command")])
        return Command(name=stated)
    if release.tool == "llamafactory":
        return _of_llamafactory(values)
    if len(known) == 1:
        return Command(name=known[0])
    return _by_keys(release, values, known)


def _of_llamafactory(values: Mapping[str, Any]) -> Command:
    if values.get("do_train"):
        return Command(name="train")
    if values.get("export_dir"):
        return Command(name="infer", purpose=MERGE)
    if "dataset" in values or values.get("do_predict") or values.get("do_eval"):
        return Command(name="train", purpose=EVALUATE if values.get("do_predict") else TRAIN)
    if "task" in values:
        return Command(name="eval", purpose=EVALUATE)
    if "output_dir" in values or "stage" in values:
        return Command(name="train")
    return Command(name="infer", purpose=CHAT)


def _by_keys(release: ToolRelease, values: Mapping[str, Any], known: tuple[str, ...]) -> Command:
    """Of several commands the one that knows most keys of the file; the first one where that says
    nothing.
    """
    counts = {name: len(values.keys() & keys_of(release, name).keys()) for name in known}
    best = max(counts.values())
    likely = [name for name in known if counts[name] == best]
    if len(likely) == 1:
        telling = sorted(
            key
            for key in values
            if [name for name in known if key in keys_of(release, name)] == likely
        )
        because = f", which alone knows {', '.join(telling[:3])}" if telling else ""
        return Command(
            name=likely[0], assumed=f"read as a file of `{release.tool} {likely[0]}`{because}"
        )
    return Command(
        name=likely[0],
        assumed=(
            f"read as a file of `{release.tool} {likely[0]}`: its keys do not tell it from"
            f" {', '.join(likely[1:])}"
        ),
        likely=tuple(likely),
    )


def in_comments(release: ToolRelease, text: str) -> str | None:
    """The command that comments name, as in `# trl reward --config trl.yaml`; None where they name
    none, or several.
    """
    words = "|".join(map(re.escape, release.commands))
    named = re.findall(rf"(?m)^\s*#.*\b{release.tool} ({words})\b", text)
    return named[0] if len(set(named)) == 1 else None


# Kind of data -> the command that trains on such rows.
BY_DATA = {
    "preference": "dpo", "unpaired_feedback": "kto", "prompts_with_verifier": "grpo",
}  # fmt: skip


def by_data(release: ToolRelease, command: Command, kind: str) -> Command:
    """The command among the likely ones that trains on such data; else the same as before."""
    name = BY_DATA.get(kind)
    if name is None or name not in command.likely or name == command.name:
        return command
    return Command(
        name=name, assumed=f"read as a file of `{release.tool} {name}`: its data are such rows"
    )


def refuse_other_purposes(command: Command, name: str) -> None:
    """Raise InputError for a file with which nothing is trained."""
    what = {
        MERGE: "it merges an adapter into its base (`llamafactory-cli export`)",
        CHAT: "it is for answers of a model (`llamafactory-cli chat`, `api`)",
        EVALUATE: "it measures a model",
    }.get(command.purpose)
    if what is not None:
        raise InputError(
            f"{what}, and nothing is trained with it",
            "`advise check` takes configurations of a training",
            "check the file that the model was trained with",
            where=name,
        )
