"""`advise probe`: what this machine offers for training."""

from __future__ import annotations

import click

from advisor.commands.options import json_option
from advisor.commands.output import console, print_json
from advisor.probe import probe as probe_machine
from advisor.render.probe import print_probe, probe_json


@click.command()
@json_option
def probe(as_json: bool) -> None:
    """Show what this machine offers for training."""
    hardware = probe_machine()
    if as_json:
        print_json(probe_json(hardware))
    else:
        print_probe(hardware, console())
