"""How the processes of a stage shared the work, for result.json."""

from __future__ import annotations

from advisor.ground.types import DDP
from advisor.ground.units import GIB
from advisor.record.stage import LaunchRecord
from trainers.job.job import Job
from trainers.job.machine import MemoryMeter, process_count, process_rank, sum_over_processes
from trainers.job.types import Model
from trainers.step.sharding import sharded_tensors


def launch_record(job: Job, model: Model, memory: MemoryMeter) -> LaunchRecord:
    """What became of the plan's `launch`. Call it in every process."""
    launch, count = job.plan.launch, process_count()
    own = memory.peak_bytes() / GIB
    table = [[own if rank == process_rank() else 0.0] for rank in range(count)]
    return LaunchRecord(
        strategy=(launch.strategy or DDP) if count > 1 else None,
        processes=max(1, count // launch.nodes),
        nodes=launch.nodes,
        sharded_tensors=sharded_tensors(model),
        peak_gib_per_rank=tuple(round(peak, 3) for (peak,) in sum_over_processes(table)),
    )
