"""`advise run` of a run that is at work already: shows how far it is, and leaves it alone."""

from __future__ import annotations

import sys
from time import sleep

from advisor.commands.output import print_json, say
from advisor.ground.progress import Bar, is_live
from advisor.launch import Run
from advisor.launch.live import LiveRun, RunIsLive, read_live
from advisor.plan.record_files import read_record
from advisor.render.run import run_json, shown_path

LOOK_EVERY_S = 0.5


def follow(found: RunIsLive, *, as_json: bool = False) -> Run | None:
    """Show the progress of a live run: on a terminal until it ends or Ctrl-C, which leaves it at
    work; elsewhere once. The run, if it ended meanwhile.
    """
    live = read_live(found.folder)
    if live is None:
        return _ended(found)
    if as_json:
        run = Run(folder=live.folder, record=live.record)
        print_json({**run_json(run), "progress": live.to_dict()})
        return None
    where = shown_path(live.folder)
    say(f"{where} is running (process {live.process}): {live.sentence}")
    if not is_live(sys.stderr):
        return None
    say(f"Ctrl-C leaves it running. To stop it, with its last step saved: kill {live.process}")
    try:
        _watch(live)
    except KeyboardInterrupt:
        say(f"{where} is still running")
        return None
    return _ended(found)


def _watch(live: LiveRun | None) -> None:
    """Show the run until it ends."""
    bar = Bar()
    try:
        while live is not None:
            if live.view is not None:
                bar.draw(live.view)
            sleep(LOOK_EVERY_S)
            live = read_live(live.folder)
    finally:
        bar.close()


def _ended(found: RunIsLive) -> Run | None:
    record = read_record(found.folder)
    return Run(folder=found.folder, record=record) if record is not None else None
