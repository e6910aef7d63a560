"""Small tokenizers and random models like those of known families, with templates of our words."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

WORDS = [
    (
        "Where is my parcel? It is on its way. The shop sells tea, cups and kettles in red, blue"
        " and green."
    ),
    (
        "system user assistant model question answer first second third hello good morning please"
        " thank you very much"
    ),
    (
        "def f(x): return {'a': 1, \"b\": [2, 3]}  # 0123456789 <tag> </tag> {name} -> * / + = ! ~"
        " ^ & % $ @ ; : ` | \\ \n\t"
    ),
]


def byte_level(
    special: tuple[str, ...], *, eos: str, bos: str | None = None, words: Sequence[str] = WORDS
) -> Any:
    """A tokenizer over bytes, as Llama 3, Qwen, Phi-4 and GPT-2 have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=eos, bos_token=bos, pad_token=eos
    )


def piece_level(special: tuple[str, ...], *, eos: str, bos: str) -> Any:
    """A tokenizer over pieces that begin with their space, and bytes, as Llama 2 and Gemma have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    raw.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<unk>", *special], show_progress=False
        ),
    )
    state = json.loads(raw.to_str())
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    raw = Tokenizer.from_str(json.dumps(state))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=eos, bos_token=bos, unk_token="<unk>", pad_token=eos
    )


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
# Qwen 2.5: a system turn of its own where there is none, tools in the system turn, calls between
# tags, results as a user's turn.
QWEN = """{%- set own = messages[0].content if messages[0].role == 'system' else 'You are a helper.' -%}
<|im_start|>system
{{ own }}{% if tools %}

# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}<|im_end|>
{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role != 'system' or not loop.first %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}{% if m.content or not loop.first %}
{% endif %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# Qwen 3: the answer to the last question has a block of thoughts, earlier answers have none.
QWEN3 = """{%- set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{% if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant
{% set parts = m.content.split('</think>') %}{% if loop.index0 > ns.last and (loop.last or parts | length > 1) %}<think>
{{ parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' }}
</think>

{{ parts[-1].lstrip() }}{% else %}{{ parts[-1].lstrip() }}{% endif %}{% for c in m.tool_calls or [] %}{% if m.content or not loop.first %}
{% endif %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool'"
    ' else m.role }}<|end_header_id|>\n\n{% if m.tool_calls %}{"name": "{{'
    ' m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments |'
    " tojson }}}{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}{% if"
    " add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% set system ="
    " '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% else %}{% set loop_messages ="
    " messages %}{% set system = '' %}{% endif %}{% for m in loop_messages %}{% if (m.role =="
    " 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user/assistant')"
    " }}{% endif %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ (system if loop.first else '')"
    " + m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{%"
    " endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{%"
    " elif m.role == 'assistant' and m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{"
    " {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{{ ', ' if not"
    " loop.last }}{% endfor %}]{{ eos_token }}{% elif m.role == 'assistant' %} {{ m.content }}{{"
    " eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]{% else"
    " %}{{ raise_exception('only user, assistant and tool roles') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not"
    " supported') }}{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2"
    " == 0) %}{{ raise_exception('roles must alternate user/assistant') }}{% endif"
    " %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim"
    " }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Phi 3 ends the whole text with the end token, but not a conversation that goes on.
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}{% if"
    " add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor"
    " %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}{% if"
    " add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FALCON = (
    "{% for m in messages %}{{ '' if loop.first else '\n\n' }}{{ m.role | capitalize }}: {{"
    " m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
# GPT-OSS: the header's end is part of what the model writes, and the last answer ends otherwise
# than earlier ones.
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{%"
    " endif %}<|message|>{{ m.content }}{% if m.role == 'assistant' and loop.last and not"
    " add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}{% if"
    " add_generation_prompt %}<|start|>assistant{% endif %}"
)
# SmolLM3 and others: the tag says what is generated, here without the token that ends the turn.
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation"
    " %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor"
    " %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED_WHOLE = TAGGED.replace("{% endgeneration %}", "<|im_end|>\n{% endgeneration %}").replace(
    "{% endif %}<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor"
)


@dataclass(frozen=True)
class Family:
    """A model family: its tokenizer, its template, the text before an answer and the end token."""

    build: Callable[[], Any]
    template: str
    end: str  # where the conversation goes on
    last_end: str = ""  # of the last answer, where it is another one
    lead: str = ""
    last_lead: str = ""
    system: bool = True
    tools: bool = False

    def middle(self, said: str) -> str:
        """What is learned of an answer where the conversation goes on."""
        return self.lead + said + self.end

    def last(self, said: str) -> str:
        """What is learned of the last answer."""
        return (self.last_lead or self.lead) + said + (self.last_end or self.end)


IM_END = "<|im_end|>"


im_tokenizer = partial(
    byte_level, ("<|endoftext|>", "<|im_start|>", IM_END, "<|im_sep|>"), eos=IM_END
)


def plain_pieces(*more: str) -> Any:
    return piece_level(("<s>", "</s>", *more), eos="</s>", bos="<s>")


FAMILIES = {
    "qwen2": Family(im_tokenizer, QWEN, IM_END, tools=True),
    "qwen3": Family(im_tokenizer, QWEN3, IM_END, last_lead="<think>\n\n</think>\n\n", tools=True),
    "smollm": Family(im_tokenizer, CHATML, IM_END),
    "llama3": Family(
        lambda: byte_level(
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            eos="<|eot_id|>",
            bos="<|begin_of_text|>",
        ),
        LLAMA3,
        "<|eot_id|>",
        tools=True,
    ),
    "llama2": Family(plain_pieces, LLAMA2, " </s>", lead=" "),
    "mistral": Family(
        lambda: plain_pieces(
            "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"
        ),
        MISTRAL,
        "</s>",
        lead=" ",
        system=False,
        tools=True,
    ),
    "gemma": Family(
        lambda: piece_level(
            ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), eos="<eos>", bos="<bos>"
        ),
        GEMMA,
        "<end_of_turn>",
        system=False,
    ),
    "phi3": Family(
        lambda: piece_level(
            ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            eos="<|endoftext|>",
            bos="<s>",
        ),
        PHI3,
        "<|end|>",
    ),
    "phi4": Family(im_tokenizer, PHI4, IM_END),
    "zephyr": Family(plain_pieces, ZEPHYR, "</s>"),
    "falcon": Family(
        lambda: byte_level(("<|endoftext|>",), eos="<|endoftext|>"),
        FALCON,
        "",
        last_end="<|endoftext|>",
        lead=" ",
    ),
    "gpt-oss": Family(
        lambda: byte_level(
            ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"), eos="<|return|>"
        ),
        HARMONY,
        "<|end|>",
        last_end="<|return|>",
        lead="<|channel|>final<|message|>",
    ),
    "tagged": Family(im_tokenizer, TAGGED, IM_END),
    "tagged-whole": Family(im_tokenizer, TAGGED_WHOLE, IM_END),
}


@cache
def family_tokenizer(name: str) -> Any:
    """The family's tokenizer with its template; shared, so not to be changed."""
    tokenizer = FAMILIES[name].build()
    tokenizer.chat_template = FAMILIES[name].template
    return tokenizer


# --------------------------------------------------------------------------- models

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip


def sizes(family: str) -> dict[str, int]:
    """Of a tiny model. Qwen2 has no width of a head."""
    return {key: value for key, value in SIZES.items() if family != "qwen2" or key != "head_dim"}


def tiny(family: str, folder: Path, dtype: Any = None, *, louder: float = 1.0, **keys: Any) -> Path:
    """The folder of a random model; `louder` multiplies its matrices, so that attention matters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    # llama.cpp stops at <|endoftext|> whatever the file says.
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    config = AutoConfig.for_model(
        family,
        **{
            **sizes(family),
            "vocab_size": len(tokenizer),
            "eos_token_id": ends,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **keys,
        },
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones would hide a mistake
                parameter.add_(torch.rand_like(parameter) / 2)
            elif parameter.dim() == 1:  # biases are zeros
                parameter.add_(torch.randn_like(parameter) / 4)
            else:
                parameter.mul_(louder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
