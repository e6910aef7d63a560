"""torch's launcher of several processes, which gives them time to stop.

torchrun passes a signal on and ends its workers by SIGKILL half a minute later, whether or not a
checkpoint is being written. Here it passes the signal on and waits until they have ended. A worker
that fails by itself still takes the others along.

    python -P -m trainers.say.torchrun ARGUMENTS_OF_TORCHRUN
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import psutil  # comes with accelerate; here, since a second signal may find it half imported

from advisor.ground.signals import STOPS, receiving
from advisor.ground.terminal import show_streams

IGNORED = {number for number in STOPS if signal.getsignal(number) is signal.SIG_IGN}


def pass_on(number: int, frame: FrameType | None) -> None:
    """Send a signal to the workers; if there is none yet, end."""
    if number in IGNORED:
        return
    workers = psutil.Process().children()
    if not workers:
        os._exit(128 + number)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGTERM)


def main() -> int:
    """The exit code of the worker that failed first, as a shell gives it; 0 if none did."""
    show_streams()
    with receiving(pass_on):
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing import api
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        # What torchrun does with a signal once it has started the workers.
        api._terminate_process_handler = pass_on
        # Each worker leaves its own message, also when it was asked to stop.
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        try:
            run.main()
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode > 0:
                return failure.exitcode
            print(f"process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
            return 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
