"""A training loop over two processes in as few lines as the libraries ask for: accelerate's data
parallelism, or torch's FSDP2 by itself. Rows of random tokens, full weights in float32.

    torchrun --standalone --nproc-per-node 2 benchmarks/plain/distributed.py JSON
"""

import json
import statistics
import sys
import time

sys.path.pop(0)  # this folder, in which a file has the name of a library

import torch
from transformers import AutoModelForCausalLM


def accelerated(model, optimizer):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    return *accelerator.prepare(model, optimizer), accelerator.backward


def divided(model, make):
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh(
        "cpu", (torch.distributed.get_world_size(),)
    )
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, make(model), torch.Tensor.backward


def main():
    given = json.loads(sys.argv[1])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    model.train()
    model.config.use_cache = False

    def make(trained):
        return torch.optim.AdamW(trained.parameters(), lr=given["learning_rate"], fused=True)

    if given["way"] == "fsdp":
        model, optimizer, backward = divided(model, make)
    else:
        model, optimizer, backward = accelerated(model, make(model))
    seconds, losses = [], []
    for _ in range(given["steps"]):
        ids = torch.randint(0, 1000, (given["rows"], given["tokens"]))
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - begin)
    if torch.distributed.get_rank() == 0:
        step_s = statistics.median(seconds[1:])
        print(json.dumps({"step_s": step_s, "train_s": sum(seconds), "losses": losses}))
    torch.distributed.destroy_process_group()


main()
