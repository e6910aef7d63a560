"""What `advise check` was called with, for what checks data and what checks configurations."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from advisor.ground.errors import InputError


class CheckOptions(Struct, frozen=True, kw_only=True):
    """What `advise check` was called with beside the files."""

    mapping: tuple[str, ...] = ()
    evaluation: str | None = None
    model: str | None = None
    template: tuple[str, ...] = ()
    seq_len: int | None = None
    full: bool = False
    show_row: int | None = None
    gpu: str | None = None
    plan_file: str | None = None
    fix_to: str | None = None
    as_is: bool = False
    as_json: bool = False

    def given(self, flags: Mapping[str, str]) -> list[str]:
        """Those of these flags (flag -> its field) that were given. Row 0 is one, too."""
        values = {flag: getattr(self, name) for flag, name in flags.items()}
        return [
            flag
            for flag, value in values.items()
            if value is not None and value is not False and value != ()
        ]

    def refuse(self, flags: Mapping[str, str], on: str, hint: str) -> None:
        """Raise InputError for flags that were given and have no effect on this kind of file."""
        if given := self.given(flags):
            raise InputError(f"{given[0]} has no effect on {on}", where=given[0], hint=hint)


DEFAULTS = CheckOptions()
