"""Run by prepare.mjs in the Python of the page: bytecode that is never compared with its source."""

import compileall
import sys
from py_compile import PycInvalidationMode

for folder, stands_in, beside in (
    ("core", "/advise", False),
    ("stdlib", "/lib/python314.zip", True),
):
    done = compileall.compile_dir(
        f"/stage/{folder}",
        ddir=stands_in,
        force=True,
        quiet=1,
        legacy=beside,
        optimize=2 if beside else 0,  # without the docstrings of the standard library
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        sys.exit(f"{folder} cannot be compiled")
