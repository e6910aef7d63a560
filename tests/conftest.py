"""Fixtures that several rooms share: a tiny model that trains in a second, and the real one for
slow tests.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # plain pytest is offline
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if (
        signal.getsignal(_number) == signal.SIG_IGN
    ):  # a background shell and nohup leave them ignored, and children inherit that
        signal.signal(_number, _default)

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)
CORPUS = [
    "Where is my parcel? Thank you for writing to us, we will look at your order today.",
    "How can I return a kettle? Please send it back within thirty days, we pay the money back.",
    (
        "system user assistant question answer hello good morning the shop sells tea, cups and"
        " kettles in red, blue and green."
    ),
]
PAIRS = "".join(
    json.dumps({"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}, of course."})
    + "\n"
    for i in range(60)
)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run `advise ...` in a folder of its own; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVISE_RULES", raising=False)

    from advisor.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["advise", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama with a real (small) tokenizer and a ChatML
    template.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched once into the user's cache.

    For tests marked slow.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainers.tools.demo_model"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the real model cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    return Path(done.stdout.strip())
