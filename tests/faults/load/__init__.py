"""Load: many at once, many departments, many rows, many steps. Time may grow with the work, memory
and logs may not. `rows` are lines of the table of the long form.
"""

from tests.faults.load.load import rows

__all__ = ["rows"]
