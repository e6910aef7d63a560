"""The base of a divided model is read by one process of a machine, in memory and not in name alone,
and a reference model is divided as the model is.
"""

import shutil

import pytest

pytest.importorskip("trl")

from tests.distributed.cells import FSDP, MIXED, MODEL, PRECISIONS, Cell, fill, write_plan
from tests.distributed.starting import train_plans
from tests.distributed.train import TRAINED

pytestmark = [pytest.mark.slow, pytest.mark.train]
LAYERS, NOISE = 3, 40e6  # bytes that a process needs for other things until the first micro-batch
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": LAYERS}


def test_one_process_reads_the_base_for_all(tmp_path):
    """Until the first micro-batch the second process has memory for its half of the weights, and
    under mixed precision for that in float32; the first one has all of them once, besides.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fill(tmp_path)
    shutil.copytree(tmp_path / MODEL, tmp_path / "large")
    config = AutoConfig.from_pretrained(tmp_path / MODEL)
    config.update(LARGE)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "large")
    size = sum(one.numel() for one in model.parameters())
    keys = {"model": "large", "weights_dtype": "bfloat16", "max_steps": 1}
    plans = {
        (objective, precision): write_plan(
            tmp_path, Cell(FSDP, "full", objective, precision), **keys
        )
        for objective in ("sft", "dpo")
        for precision in PRECISIONS
    }
    found = train_plans(list(plans.values()), processes=2)
    for (objective, precision), plan in plans.items():
        one = found[plan]
        assert one["status"] == TRAINED, one["text"]
        first, second = one["dirty"]
        width = 4 if precision == MIXED else 2
        mine = width * size / 2 + (2 * size / 2 if objective == "dpo" else 0)
        assert second < mine + NOISE, (objective, precision)
        assert first < mine + (4 * size if precision == MIXED else 0) + NOISE
        assert one["reference_units"] == (LAYERS + 1 if objective == "dpo" else 0)
