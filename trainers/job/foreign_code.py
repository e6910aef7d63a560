"""Code that comes with a model: it runs only if the plan says so, and nobody is asked at run time.

Left to itself transformers asks on the terminal, where a `y` would run it; so every load of ours
passes `trust_remote_code`, and the question itself is switched off for the loads of libraries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from advisor.ground.errors import InputError

KEY = "trust_remote_code"


def never_ask() -> None:
    """Let transformers refuse a model's own code where it would ask on the terminal."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


@contextmanager
def explain_refused_code(model: object) -> Iterator[None]:
    """Raise InputError where a model needs code of its own to load.

    Args:
        model: Its name, for the message.
    """
    try:
        yield
    except ValueError as error:
        refused = refused_code(error, model)
        if refused is None:
            raise
        raise refused from None


def refused_code(error: BaseException, model: object = "the model") -> InputError | None:
    """The error of a model whose own code was refused; None for any other error."""
    if not isinstance(error, ValueError) or KEY not in str(error):
        return None
    return InputError(
        "it comes with Python code of its own, which was not run",
        where=str(model),
        allowed="a model that transformers knows",
        hint=f"{KEY}: true in the plan runs that code with your rights; read it first",
    )
