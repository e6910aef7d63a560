"""qmemcalc: a config.json and settings of LoRA or QLoRA."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "qmemcalc"
NOTE = (
    "LoRA and QLoRA on one GPU; the model's size guessed from width and depth, as its documentation"
    " shows; no logits, no targets"
)
# Run in its own environment: once, and for each item.
IMPORTS = """
import pathlib, tempfile
from qmemcalc import estimate_memory
place = tempfile.TemporaryDirectory()
"""
BODY = """
    here = pathlib.Path(place.name, str(abs(hash(json.dumps(item["config"])))))
    here.mkdir(exist_ok=True)
    (here / "config.json").write_text(json.dumps(item["config"]))
    found = estimate_memory(str(here), **item["settings"])
    return found["total_MB"] * 1e6 / 2**30, found["buffers_MB"] * 1e6 / 2**30
"""


def arguments(job: Job) -> Arguments:
    """A config.json of the Llama kind, and arguments of its `estimate_memory`."""
    if job.gpus > 1:
        return "one GPU only"
    if job.method == "full":
        return "LoRA and QLoRA only"
    return {
        "config": {
            "model_type": "llama", "hidden_size": job.hidden, "num_hidden_layers": job.layers,
            "num_attention_heads": job.heads, "num_key_value_heads": job.kv_heads,
            "intermediate_size": job.intermediate, "vocab_size": job.vocab,
        },
        "settings": {
            "batch_size": job.micro_batch_size, "seq_len": job.seq_len,
            "lora_r": job.rank or 16, "precision": job.weights_dtype,
            "quantization": "4bit" if job.method == "qlora" else "none",
            "gradient_checkpointing": job.recompute,
        },
    }  # fmt: skip
