"""The result of a run as GGUF files that are proved to be the model.

Run: python -P -m trainers.tools.gguf RUN --out FOLDER [--only NAME] [--kind Q4_K_M]
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.terminal import show_streams
from trainers.frame.machine import quiet_libraries, torch_device, use_cores
from trainers.tools.gguf.export import export


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="trainers.tools.gguf",
        description="Write results of a run as GGUF files. `advise export --to gguf` calls this.",
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only")
    parser.add_argument("--kind", default="", help="of the file; default: 16 bit")
    parser.add_argument("--device", default="cpu", help="that LoRA results are merged on")
    given = parser.parse_args(argv)
    show_streams()
    use_cores()
    quiet_libraries()
    signal.signal(signal.SIGTERM, _stop)
    try:
        export(
            given.run,
            given.out,
            only=given.only,
            kind=given.kind,
            device=torch_device(given.device),
            say=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        print("error: stopped; nothing half-written is left", file=sys.stderr)
        return Stopped.exit_code
    except AdviseError as error:
        print(f"error: {error.text()}", file=sys.stderr)
        return error.exit_code
    return 0


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
