"""What the scripts have in common: rows, a clock, and the object that they print."""

import json
import resource
import time

import torch
from transformers import TrainerCallback


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Clock(TrainerCallback):
    """Seconds between the first and the last step."""

    def on_train_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_train_end(self, *args, **kwargs):
        self.seconds = time.perf_counter() - self.start


def show(history, tokens, seconds, device):
    """Print losses, gradient norms, speed and peak memory."""
    cuda = device == "cuda"
    found = {
        "tokens_per_s": tokens / seconds if tokens else None,
        "allocated_bytes": torch.cuda.max_memory_allocated() if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "grad_norms": [entry["grad_norm"] for entry in history if "grad_norm" in entry],
    }  # fmt: skip
    print(json.dumps(found))
