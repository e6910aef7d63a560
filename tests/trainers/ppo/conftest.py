"""PPO stages on a toy model, trained in this process, and random modules as stages save them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHATML
from tests.trainers.alignment import QUESTIONS, stage_with
from tests.trainers.conftest import apart, job_in
from tests.trainers.runs import lines_of, write_rows
from trainers.job.job import Job

SCORES = '''
def share(prompts, completions, **columns):
    """Share of the letter x in each answer."""
    return [text.count("x") / max(1, len(text)) for text in completions]


def early(prompts, completions):
    """Share of letters before n, of which any answer has some."""
    return [sum(letter < "n" for letter in text) / max(1, len(text)) for text in completions]


def length(prompts, completions):
    return [len(text) / 10 for text in completions]


def same(prompts, completions):
    return [0.5] * len(completions)
'''
# Learns within fifteen updates: a high rate and no price of KL, which a real policy would not
# survive.
TOY = {
    "name": "ppo", "objective": "ppo", "update": "lora", "rank": 16, "alpha": 32,
    "learning_rate": 2e-3, "value_learning_rate": 1e-2, "scheduler": "constant", "warmup": 0.0,
    "max_steps": 2, "micro_batch_size": 16, "grad_accum": 3, "response_tokens": 12, "seq_len": 96,
    "reward": "scores.py:share", "kl_coef": 0.0, "kl_limit": 100.0, "missing_end_penalty": 0.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of thirty characters: about a thirtieth of its answers is x."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("toy-model")
    words = ["<unk>", "<|im_start|>", "<|im_end|>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    numbers = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<unk>", unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False, eos_token_id=2, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # a head this small could make no token likely, whatever comes in
        model.lm_head.weight *= 12
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty questions with answers, all different."""
    rows = [
        {"prompt": f"{QUESTIONS[n % 5]}, order {n}?", "completion": f"Thank you, order {n}."}
        for n in range(60)
    ]
    return write_rows(tmp_path_factory.mktemp("prompts") / "chats.jsonl", rows)


@pytest.fixture
def make(toy_model: Path, chats: Path, tmp_path: Path) -> Callable[..., Job]:
    """A ppo stage's job after the stages `before`: keys are the stage's, with `job_` the job's."""
    (tmp_path / "scores.py").write_text(SCORES)

    def build(*, before: Any = (), **keys: Any) -> Job:
        stage, job = apart({**TOY, **keys})
        stages = (*before, stage_with(stage))
        return job_in(tmp_path, stages, **{"model": toy_model, "data": chats, **job})

    return build


# --------------------------------------------------------------------------- modules

UPDATES = {
    "lora": {"rank": 4, "alpha": 8},
    "adapter": {"rank": None, "alpha": None, "bottleneck": 8},
    "prefix": {"rank": None, "alpha": None, "prefix_tokens": 4},
    "full": {"rank": None, "alpha": None},
}


def save_module(base: Path, folder: Path, update: str, *, seed: int, scores: int) -> Path:
    """A random module or whole model with the base's tokenizer, which scores if it has `scores`."""
    import torch
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from advisor.peft_adapter import BottleneckConfig

    heads = {"num_layers": 2, "num_attention_heads": 2, "token_dim": 16}
    configs = {
        "lora": partial(LoraConfig, r=4, lora_alpha=8, target_modules="all-linear"),
        "adapter": partial(BottleneckConfig, bottleneck=8, placement="houlsby"),
        "prefix": partial(PrefixTuningConfig, num_virtual_tokens=4, **heads),
    }
    torch.manual_seed(seed)
    extra = {"num_labels": int(scores)} if scores else {}
    loader = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model: Any = loader.from_pretrained(base, dtype=torch.float32, **extra)
    if update != "full":
        model = get_peft_model(
            model, configs[update](task_type="SEQ_CLS" if scores else "CAUSAL_LM")
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    timed = ("tokens_per_s", "elapsed_s", "memory_bytes", "writing_s", "learning_s")
    lines = lines_of(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]
