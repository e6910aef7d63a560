"""hf-vram-calc: factors on the bytes of the weights, for training and for LoRA."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "hf-vram-calc"
NOTE = (
    "one GPU; factors on the bytes of the weights: no batch, length or activations, no quantised"
    " base but by the dtype"
)
HAS_CONTEXT = False
# Run in its own environment: once, and for each item.
IMPORTS = """
from hf_vram_calc.calculator import VRAMCalculator
from hf_vram_calc.config import ConfigManager
calculator = VRAMCalculator(ConfigManager())
"""
BODY = """
    base = calculator.calculate_model_memory(item["params"], item["dtype"])
    if item["rank"]:
        return calculator.calculate_lora_memory(base, item["params"], item["rank"]), 0
    return calculator.calculate_training_memory(base), 0
"""


def arguments(job: Job) -> Arguments:
    """Parameters, the dtype of the weights and the rank."""
    if job.gpus > 1:
        return "one GPU only"
    return {
        "params": job.params,
        "dtype": "int4" if job.method == "qlora" else job.weights_dtype,
        "rank": None if job.method == "full" else job.rank or 16,
    }
