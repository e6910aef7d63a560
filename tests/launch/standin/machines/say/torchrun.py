"""Stands in for torchrun: passes SIGTERM on, and ends with the exit code of the first to fail."""

import argparse
import os
import signal
import subprocess
import sys
import time


def main():
    parser = argparse.ArgumentParser()
    for name in ("nproc-per-node", "nnodes", "node-rank"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("rdzv-backend", "rdzv-id", "master-addr", "master-port"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--no-python", action="store_true", required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    count = given.nproc_per_node
    world = {
        "WORLD_SIZE": str(given.nnodes * count), "LOCAL_WORLD_SIZE": str(count),
        "TORCHELASTIC_RUN_ID": given.rdzv_id,
    }  # fmt: skip
    workers = []
    for local in range(count):
        own = {"LOCAL_RANK": str(local), "RANK": str(given.node_rank * count + local)}
        workers.append(subprocess.Popen(given.command, env=os.environ | world | own))

    def pass_on(number, frame):
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        codes = [worker.poll() for worker in workers]
        if bad := next(filter(None, codes), 0):
            for worker in workers:
                worker.kill()
            return bad if bad > 0 else 128 - bad
        if None not in codes:
            return 0
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
