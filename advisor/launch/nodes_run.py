"""`advise run` on several machines: this one leads, or follows the one that does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from advisor.ground.errors import AdviseError, MachineNotReady
from advisor.launch.call import Call
from advisor.launch.child import Ended, every_stop_as_interrupt
from advisor.launch.folder import find_record
from advisor.launch.input_digests import InputContent
from advisor.launch.nodes import Place, find_place
from advisor.launch.nodes_follower import Follower, following
from advisor.launch.nodes_leader import Crew, Guard, leading
from advisor.launch.nodes_order import Order, Rendezvous
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.record import DRY_RUN, DryRun, DryRunRecord, Run
from advisor.plan.record_files import try_read_part
from advisor.situation.of_plan import plan_shape


def on_machines(call: Call, train: Callable[[Call, Crew | None], Run | DryRun]) -> Run | DryRun:
    """Train on this machine alone, or lead those of the run, or follow the one that leads.

    Raises what `train` does; InputError, MachineNotReady and NodeLost where the machines do not
    come together, do not fit together, or are lost.

    Args:
        train: What the leader does, and a machine alone.
    """
    run = call.run
    place = find_place(run.plan.launch.nodes, os.environ, plan=run.path, folder=run.folder)
    if place is None:
        return train(call, None)
    with every_stop_as_interrupt():
        if place.leads:
            with leading(place, run.folder, say=call.say) as crew:
                crew.compare(call.report())
                return train(call, crew)
        with following(place, run.folder, say=call.say) as follower:
            _follow(call, follower)
    return _outcome(call, place)


def _follow(call: Call, follower: Follower) -> None:
    """Check this machine, then do what the leader says until the run is done."""
    run, launch = call.run, call.run.plan.launch
    follower.compare(call.report())
    try:
        checked = call.preflight(plan_shape(run.plan, run.path), leads=False)
        inputs = call.inputs_here()
    except AdviseError as error:
        follower.refuse(error)
        raise
    follower.checked(digests_of(inputs), checked.warnings)
    starter = TrainerStarter(
        package_folder=call.package_folder,
        run_folder=run.folder,
        launch=launch,
        gpus=checked.gpus.environment,
        max_steps=call.max_steps,
        memory_bytes=call.machine.ram_total_bytes,
        lock_fd=None,
        more_environment=follower.environment,
    )
    by_name = {entry.name: entry for entry in run.entries}

    def start(order: Order, rendezvous: Rendezvous, guard: Guard) -> Ended:
        return starter.train_together(
            [by_name[name] for name in order.entries],
            (run.folder / order.folder).resolve(),
            order.flags,
            rendezvous,
            guard,
            server=order.server,
        )

    follower.follow(start, folder=run.folder, processes=launch.processes)


def _outcome(call: Call, place: Place) -> Run | DryRun:
    """What the leader has written into the folder, as another machine of the run sees it."""
    folder = call.run.folder
    if call.dry_run:
        measured = try_read_part(DryRunRecord, folder / DRY_RUN)
        if measured is not None:
            return DryRun(folder=folder, record=measured, node=place.node)
    elif (record := find_record(folder, call.run.identity)) is not None:
        return Run(folder=folder, record=record, node=place.node)
    raise MachineNotReady(
        f"node 0 has finished the run, and this machine does not see its result in {folder}"
    )


def digests_of(inputs: Mapping[str, InputContent]) -> dict[str, str]:
    """Name of an input -> digest of what it holds."""
    return {name: content.digest for name, content in inputs.items()}
