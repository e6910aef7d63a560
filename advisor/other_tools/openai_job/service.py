"""When OpenAI's fine-tuning ends: rules/tools/openai.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, Shape, Text
from advisor.ground.sources import LINK, SOURCE, source_from
from advisor.ground.types import Source
from advisor.ground.yaml_cache import read_shipped

OPENAI_FILE: Shape = Keys(
    help="The end of OpenAI's fine-tuning",
    keys={
        "version": Choice(values=(1,)),
        "checked": Date(help="the day somebody read the source"),
        "review_by": Date(help="the day by which all of it is to be read again"),
        "new_jobs_until": Date(help="the day after which nobody starts a job"),
        "source": SOURCE,
        "also": ListOf(of=Text(pattern=LINK), help="copies of the source that were read"),
        "answers_until": ListOf(
            of=Keys(
                keys={
                    "until": Date(help="the day on which these models stop answering"),
                    "models": ListOf(of=Text(), least=1),
                },
                required=("until", "models"),
            )
        ),
    },
    required=("version", "checked", "new_jobs_until", "source", "answers_until"),
)
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$|-\d{4}$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What is known of the end of the service."""

    new_jobs_until: str
    answers_until: Mapping[str, str]  # base model -> day
    source: Source

    def last_day(self, model: str) -> str | None:
        """The day on which models tuned from this one stop answering; None if that is not known.

        A name without its date is the one model of that name that the file dates.
        """
        if model in self.answers_until:
            return self.answers_until[model]
        days = {day for name, day in self.answers_until.items() if _SNAPSHOT.sub("", name) == model}
        return days.pop() if len(days) == 1 else None


def openai_service() -> Service:
    """The facts of rules/tools/openai.yaml."""
    data = read_shipped(rules_dir() / "tools" / "openai.yaml", shape=OPENAI_FILE).data
    return Service(
        new_jobs_until=data["new_jobs_until"],
        answers_until={
            model: entry["until"] for entry in data["answers_until"] for model in entry["models"]
        },
        source=source_from(data["source"], checked=data["checked"]),
    )
