"""What needs a CUDA GPU: `python -m pytest -m gpu`. Without one each test says why it is skipped."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from advisor.plan.model import Launch
from tests.trainers.conftest import chats, make

__all__ = ["chats", "make"]


def why_not(needs_gpus: int) -> str:
    """Why a test cannot run here; empty if it can."""
    if find_spec("torch") is None:
        return "training needs the extra [train]"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA GPU"
    count = torch.cuda.device_count()
    return "" if count >= needs_gpus else f"needs {needs_gpus} GPUs, there are {count}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("gpu")
            if reason := why_not(2 if item.get_closest_marker("two_gpus") else 1):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def on_gpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """A job of the trainers' tests, for the GPU: in the dtype that it has unless the test says."""
    import torch

    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)

    def build(**keys: Any) -> Any:
        narrow = "bfloat16" if has_bf16 else "float16"
        dtype = "float32" if keys.get("update") == "full" else narrow
        other = {"model": str(keys.pop("model"))} if "model" in keys else {}
        job = make(**{"weights_dtype": dtype, "precision": "mixed", "job_judge": False, **keys})
        return replace(job, plan=structs.replace(job.plan, launch=Launch(device="cuda"), **other))

    return build


@pytest.fixture(scope="session")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with matrices of 100,000 parameters at rank 256, which bitsandbytes pages."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide-model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
