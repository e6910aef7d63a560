"""Duration of an optimizer step and of a run. Arithmetic only.

machine.py: what a device, its links and its host reach, and what moves between devices. work.py:
compute and memory traffic. step.py adds the optimizer and written answers and puts them together.
"""

from advisor.estimate.time.machine import Machine, machine_of
from advisor.estimate.time.step import inference_s, time_estimate, weights_bytes

__all__ = ["Machine", "inference_s", "machine_of", "time_estimate", "weights_bytes"]
