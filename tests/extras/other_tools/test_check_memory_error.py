"""`advise check ERROR.txt`: what a message about memory that ran out says, alone, beside a script or
in a notebook's output; texts that are data stay data.
"""

import json
from pathlib import Path

import pytest

from tests.extras.other_tools.test_check_script import SFT, UNSLOTH, notebook

FRAMES = """\
Traceback (most recent call last):
  File "train.py", line 9, in <module>
    trainer.train()
  File "/env/transformers/trainer.py", line 2325, in train
    {}
"""
BACKWARD = FRAMES.format(
    'accelerator.backward(loss)\n  File "/env/torch/_tensor.py", line 5, in backward'
)
LOSS = FRAMES.format("loss = F.cross_entropy(logits, labels)")
NEW = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total"
    " capacity of 23.50 GiB of which 1.25 GiB is free. Process 77 has 4.00 GiB memory in use."
    " Including non-PyTorch memory, this process has 18.25 GiB memory in use. Of the allocated"
    " memory 14.75 GiB is allocated by PyTorch, and 3.00 GiB is reserved by PyTorch but unallocated."
)
OLD = (
    "RuntimeError: CUDA out of memory. Tried to allocate 512.00 MiB (GPU 0; 15.78 GiB total"
    " capacity; 14.02 GiB already\nallocated; 256.00 MiB free; 14.52 GiB reserved in total by PyTorch)"
)
OLDEST = (
    "RuntimeError: CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total"
    " capacity; 8.57 MiB already allocated; 9.28 GiB free; 4.68 MiB cached)"
)
TEXTS = {  # text -> fields of `out_of_memory`
    "new": (BACKWARD + NEW, {"kind": "torch", "moment": "backward", "device": 1, "tried_gib": 2.5,
        "total_gib": 23.5, "free_gib": 1.25, "allocated_gib": 14.75, "unallocated_gib": 3.0,
        "this_process_gib": 18.25, "processes_gib": [4.0]}),
    "old": (LOSS + OLD, {"moment": "loss", "tried_gib": 0.5, "total_gib": 15.78, "free_gib": 0.25,
        "unallocated_gib": 0.5}),
    "oldest": (OLDEST, {"moment": None, "free_gib": 9.28, "device": 0}),
    "cut-in-a-number": (NEW.replace("14.75", "14.\n75"), {"allocated_gib": 14.75}),
    "ranks": ("[rank0]: " + NEW + "\n[rank1]: " + NEW.replace("2.50", "9.00"), {"tried_gib": 2.5}),
    "step": (FRAMES.format("self.optimizer.step()") + NEW, {"moment": "optimizer step"}),
    "load": (FRAMES.format("AutoModel.from_pretrained(name)") + NEW, {"moment": "loading the model"}),
    "evaluate": (FRAMES.format('x\n  File "t.py", line 3, in evaluate\n    x') + NEW,
        {"moment": "evaluation or generation"}),
    "no-numbers": ("RuntimeError: CUDA error: out of memory", {"kind": "cuda_error"}),
    "bitsandbytes": ("Error: error out of memory at line 380 in file /x/pythonInterface.c",
        {"kind": "bitsandbytes"}),
    "vllm": ("ValueError: (8.00 GiB KV cache is needed, which is larger than the available KV cache"
        " memory (0.50 GiB).", {"kind": "vllm", "tried_gib": 8.0, "free_gib": 0.5}),
    "mps": ("RuntimeError: MPS backend out of memory (MPS allocated: 5.50 GB, other allocations:"
        " 14.76 GB, max allowed: 20.40 GB). Tried to allocate 128.00 MB on private pool.",
        {"kind": "mps", "tried_gib": 0.125, "total_gib": 20.4}),
    "killed": ("ERROR: failed (exitcode: -9) local_rank: 0", {"kind": "killed"}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), TEXTS.values(), ids=TEXTS)
def test_a_message_is_read_with_its_numbers_and_its_moment(call, text, wanted):
    """PyTorch's wording of each age, and the others'. Exit code 0; the page is sentences."""
    Path("error.txt").write_text(text)
    code, out, err = call("check", "error.txt", "--json")
    document = json.loads(out)
    assert (code, document["checked"], err) == (0, "script", "")
    found = document["out_of_memory"]
    near = {k: pytest.approx(one) if isinstance(one, float) else one for k, one in wanted.items()}
    assert {key: found[key] for key in wanted} == near
    _, page, _ = call("check", "error.txt")
    assert page.startswith("Ran out of memory")


def test_the_page_says_what_was_asked_for_what_there_was_and_what_to_do(call):
    """With what others hold, and what was reserved in pieces."""
    Path("error.log").write_text(BACKWARD + NEW)
    _, page, _ = call("check", "error.log")
    said = " ".join(page.split())
    assert "in the backward pass: it asked for 2.5 GiB and 1.25 GiB of 23.5 GiB were free." in said
    assert "PyTorch held 14.8 GiB in use, and 3 GiB reserved but not in use." in said
    assert "About 4 GiB are held by other processes" in said
    assert "expandable_segments:True" in said
    assert page.endswith("advise check train.py error.log\n")


def test_beside_a_script_the_memory_of_the_gpu_is_that_of_the_text(call):
    """In either order; a notebook says it by its own output; --gpu wins."""
    Path("train.py").write_text(SFT)
    Path("error.txt").write_text(BACKWARD + NEW)
    for files in (("train.py", "error.txt"), ("error.txt", "train.py")):
        code, out, _ = call("check", *files, "--json")
        document = json.loads(out)
        assert (code, document["verdict"], document["memory"]["limit_gib"]) == (3, "too_big", 23.5)
        assert document["out_of_memory"]["moment"] == "backward"
    _, page, _ = call("check", "train.py", "error.txt", "--gpu", "H100")
    assert page.startswith("Ran out of memory in the backward pass: ")
    assert "the estimate says that it fits, and the error text that it did not" in " ".join(
        page.split()
    )
    cells = json.loads(notebook(UNSLOTH))
    cells["cells"][-1]["outputs"] = [
        {
            "output_type": "error",
            "ename": "E",
            "evalue": NEW,
            "traceback": [BACKWARD, f"\x1b[0;31m{NEW}"],
        }
    ]
    Path("train.ipynb").write_text(json.dumps(cells))
    _, out, _ = call("check", "train.ipynb", "--json")
    document = json.loads(out)
    assert (document["out_of_memory"]["free_gib"], document["memory"]["limit_gib"]) == (1.25, 23.5)


def test_a_text_that_is_data_stays_data(call):
    """Also if somebody in it writes about memory that ran out."""
    rows = "\n\n".join(f"Question {n}: why is CUDA out of memory?" for n in range(60))
    Path("rows.txt").write_text(rows)
    code, out, _ = call("check", "rows.txt", "--json")
    assert (code, "out_of_memory" in json.loads(out)) == (0, False)
