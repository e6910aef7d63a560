"""A simulator of faults: the real store of checkpoints, the real launcher and records, a stand-in for
the arithmetic of training, and a disk that crashes, tears, fills up and loses what was not synced.
"""

from tests.faults.table import Row


def rows(seed: int) -> list[Row]:
    """What `python -m tests.faults` puts into its table."""
    from tests.faults.simulator import simulate

    return simulate.rows(seed)
