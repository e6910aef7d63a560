"""PPO stages on a toy model, trained in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.plan.model import Plan, PlanData, Stage
from tests.conftest import CHATML
from trainers.job.job import Job, make_job

SCORES = '''
def share(prompts, completions, **columns):
    """Share of the letter x in each answer."""
    return [text.count("x") / max(1, len(text)) for text in completions]


def early(prompts, completions):
    """Share of letters before n, of which any answer has some."""
    return [sum(letter < "n" for letter in text) / max(1, len(text)) for text in completions]


def same(prompts, completions):
    return [0.5] * len(completions)


def none(prompts, completions):
    return [float("nan")] * len(completions)
'''
# Learns within fifteen updates: a high rate and no price of KL, which a real policy would not
# survive.
TOY = {
    "update": "lora",
    "rank": 16,
    "alpha": 32,
    "learning_rate": 2e-3,
    "value_learning_rate": 1e-2,
    "scheduler": "constant",
    "warmup": 0.0,
}
TOY |= {
    "micro_batch_size": 16,
    "grad_accum": 3,
    "response_tokens": 12,
    "seq_len": 96,
    "reward": "scores.py:share",
}
TOY |= {"kl_coef": 0.0, "kl_limit": 100.0, "missing_end_penalty": 0.0}


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama that knows thirty characters: of its answers about a
    thirtieth is the letter x.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("toy-model")
    words = ["<unk>", "<|im_start|>", "<|im_end|>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    raw = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<unk>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            tie_word_embeddings=False,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=None,
            **shape,
        )
    )
    with torch.no_grad():  # a head this small could make no token likely, whatever comes in
        model.lm_head.weight *= 12
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty questions with answers, all different."""
    path = tmp_path_factory.mktemp("prompts") / "chats.jsonl"
    said = (
        "Where is my parcel",
        "How can I return a kettle",
        "Do you sell tea",
        "Is the red cup in the shop",
        "Can I pay today",
    )
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{said[n % 5]}, order {n}?"},
                {"role": "assistant", "content": f"Thank you, order {n}."},
            ]
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(toy_model: Path, chats: Path, tmp_path: Path) -> Callable[..., Job]:
    """A job of a ppo stage on the toy model: keys of the stage, of the job after `job_`; `before`
    holds earlier stages.
    """
    (tmp_path / "scores.py").write_text(SCORES)

    def build(**keys: Any) -> Job:
        job = {
            key.removeprefix("job_"): keys.pop(key) for key in list(keys) if key.startswith("job_")
        }
        before = tuple(keys.pop("before", ()))
        values = {**TOY, "name": "ppo", "objective": "ppo", "max_steps": 2, **keys}
        common = {key: value for key, value in values.items() if key in Stage.__struct_fields__}
        options = {
            key: value for key, value in values.items() if key not in common and value is not None
        }
        plan = Plan(
            name="test",
            model=str(job.pop("model", toy_model)),
            data=PlanData(path=str(job.pop("data", chats))),
            stages=(*before, Stage(**common, options=options)),
        )
        return make_job(
            plan, stage="ppo", run=job.pop("run", tmp_path / "run"), folder=tmp_path, **job
        )

    return build
