"""The models and the rows that cells are trained with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import save_tiny_model

MODEL, TEACHER, TRANSLATOR = "model", "teacher", "translator"
MIXTURE, ENCODER, UNTIED = "mixture", "encoder", "untied"
REWARD = (
    "def score(prompts, completions, **columns):\n"
    "    return [text.count('e') / (1 + len(text)) for text in completions]\n"
)
ROWS = 80  # four steps of sixteen, and some held out
WORDS = ("red", "blue", "green", "tea", "cup", "kettle", "shop", "parcel")
GOOD, BAD = "Thank you for writing, order {}.", "Go away, order {}."


DATA: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "chats": lambda n: {
        "messages": [
            {"role": "user", "content": f"Where is parcel {n}?"},
            {"role": "assistant", "content": f"Thank you, parcel {n} is in the red van."},
        ]
    },
    "pairs": lambda n: {
        "prompt": f"Where is order {n}?",
        "chosen": GOOD.format(n) + (" We look at the cups." if n % 2 else ""),
        "rejected": BAD.format(n),
    },
    "votes": lambda n: {
        "prompt": f"Where is order {n}?", "completion": (BAD if n % 2 else GOOD).format(n),
        "label": n % 2 == 0,
    },
    "labels": lambda n: {
        "text": f"kettle {n} is {WORDS[n % 8]}", "label": "good" if n % 3 else "bad"
    },
    "rewritings": lambda n: {
        "prompt": f"{WORDS[n // 8 % 8]} {WORDS[n % 8]} {n}", "completion": WORDS[n % 8].upper()
    },
    "texts": lambda n: {
        "text": " ".join(f"The shop sells tea number {n + at}, cups and kettles." for at in (0, 1, 2))
    },
}  # fmt: skip


def fill(folder: Path) -> None:
    """Write the rows and the random models: decoders, a mixture, an encoder, an encoder-decoder."""
    import torch
    import transformers as hf

    from tests.trainers.moe import tiny_mixture
    from tests.trainers.test_heads import words_tokenizer

    for name, row in DATA.items():
        lines = (json.dumps(row(n)) + "\n" for n in range(ROWS))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "own.py").write_text(REWARD)
    (folder / MODEL).mkdir()
    save_tiny_model(folder / MODEL)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / MODEL)
    pad = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    teacher = hf.LlamaForCausalLM.from_pretrained(folder / MODEL)
    torch.manual_seed(1)
    with torch.no_grad():
        for one in teacher.parameters():
            one.add_(torch.randn_like(one) * 0.02)
    untied = teacher.config.__class__.from_pretrained(folder / MODEL, tie_word_embeddings=False)
    encoder = hf.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **pad,
    )  # fmt: skip
    models = {
        TEACHER: teacher,
        MIXTURE: tiny_mixture(
            "qwen3_moe",
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            hidden_size=64,
            moe_intermediate_size=64,
            **pad,  # widths that a block of NF4 divides
        ),
        ENCODER: hf.BertModel(encoder),
        UNTIED: hf.LlamaForCausalLM(untied),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = words_tokenizer()
    words.save_pretrained(folder / TRANSLATOR)
    config = hf.T5Config(
        vocab_size=len(words), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    hf.T5ForConditionalGeneration(config).save_pretrained(folder / TRANSLATOR)
