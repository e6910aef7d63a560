"""GGUF files of small random models of each family, in every part as llama.cpp reads it."""

import inspect
import json
import math
import shutil
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from advisor.ground.errors import InputError
from tests.trainers.families import sizes, tiny
from trainers.tools.gguf import model
from trainers.tools.gguf.model import FAMILIES, NEIGHBOURS, check_family, settings, write_model
from trainers.tools.gguf.proof import _answer

# What llama.cpp's loader reads (src/llama-arch.cpp), written down here beside the package's tables.
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(folder: Path, path: Path, **keys):
    """(the model of a folder, its tokenizer, its tokens, the type of the file, what that cost)."""
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = model.read_tokens(tokenizer, folder, loaded.config.vocab_size)
    return loaded, tokenizer, tokens, *write_model(loaded, tokens, path, **keys)


def read_tokens(folder: Path, vocab_size: int = 400):
    return model.read_tokens(AutoTokenizer.from_pretrained(folder), folder, vocab_size)


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    """The tensors of a GGUF file by name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values_of(tensor) -> torch.Tensor:
    """The numbers of a tensor of a GGUF file, in float32."""
    numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()
    return torch.from_numpy(numbers).reshape(*map(int, reversed(tensor.shape)))


def field(reader, key):
    found = reader.get_field(key)
    return None if found is None else found.contents()


def called(name: str) -> str:
    """A weight's name in llama.cpp."""
    *path, kind = name.split(".")
    if path[1:2] == ["layers"]:
        return f"blk.{path[2]}.{LAYER['.'.join(path[3:])]}.{kind}"
    return f"{ENDS['.'.join(path)]}.{kind}"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_weight_stands_in_the_file(family, tmp_path):
    """Rows are reordered where llama.cpp pairs neighbours, and everything else is as it was."""
    folder = tiny(family, tmp_path / "model", torch.bfloat16)
    loaded, *_, kind, note = write(folder, tmp_path / "out.gguf")
    assert (kind, "nothing is rounded" in note) == ("BF16", True)
    tensors, config = tensors_of(tmp_path / "out.gguf"), loaded.config
    weights = load_file(folder / "model.safetensors")
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    named = {called(name): (name, weight.float()) for name, weight in weights.items()}
    assert named.keys() == tensors.keys()
    for place, (name, weight) in named.items():
        if family in NEIGHBOURS and ("q_proj" in name or "k_proj" in name):
            heads = 4 if "q_proj" in name else 2
            # Of a head the first row stands beside the first of its second half.
            pairs = weight.reshape(heads, 2, -1, weight.shape[1])
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        torch.testing.assert_close(values_of(tensors[place]), weight, rtol=0, atol=0)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert field(reader, "general.architecture") == family
    for key, value in settings(config).items():
        found = field(reader, f"{family}.{key}")
        assert found == pytest.approx(value) if isinstance(value, float) else found == value, key


def test_a_head_of_its_own_stands_in_the_file_whatever_the_configuration_says(tmp_path):
    """Matrices that differ are not tied; without a head llama.cpp would take the embeddings."""
    folder = tiny("llama", tmp_path / "model", tie_word_embeddings=True)
    path = folder / "model.safetensors"
    weights = load_file(path)
    head = weights["model.embed_tokens.weight"].half().float().flip(0).contiguous()
    save_file(weights | {"lm_head.weight": head}, path, metadata={"format": "pt"})
    loaded, *_ = write(folder, tmp_path / "out.gguf")
    assert loaded.config.tie_word_embeddings
    output = tensors_of(tmp_path / "out.gguf")["output.weight"]
    torch.testing.assert_close(values_of(output), head, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "largest", "kind", "said"),
    [
        (torch.float16, 1.5, "F16", "already"),
        (torch.bfloat16, 1.5, "BF16", "already"),
        (torch.float32, 1.5, "F16", "rounded to F16"),
        (torch.float32, 100_000.5, "BF16", "1e+05 is too large"),
    ],
    ids=["float16", "bfloat16", "float32", "too-large"],
)
def test_sixteen_bits_are_those_that_lose_least(dtype, largest, kind, said, tmp_path):
    """Weights keep their 16-bit type; 32-bit ones become F16 up to 65504, and the cost is said."""
    folder = tiny("llama", tmp_path / "model", dtype)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][0, 0] = largest
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    *_, found, note = write(folder, tmp_path / "out.gguf")
    assert (found, said in note) == (kind, True)


def test_eight_bits_differ_by_at_most_half_a_step(tmp_path):
    """Q8_0 has 127 steps for the largest number of each block of 32, and the step is a float16
    number (11 bits: 127 / 2**11 = 0.06 of a step at most); norms stay in 32 bit.
    """
    folder = tiny("qwen3", tmp_path / "model")
    write(folder, tmp_path / "out.gguf", kind="Q8_0")
    tensors = tensors_of(tmp_path / "out.gguf")
    weight = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    blocks = weight.reshape(-1, 32)
    step = blocks.abs().max(dim=1, keepdim=True).values / 127
    off = (values_of(tensors["blk.0.ffn_up.weight"]).reshape(-1, 32) - blocks).abs()
    assert bool((off <= step * 0.57).all())
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


def test_the_long_contexts_of_llama_3_keep_their_frequencies(tmp_path):
    """As a tensor of what each frequency is divided by: 1 for fast ones, the factor for slow ones."""
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    write(tiny("llama", tmp_path / "model", rope_parameters=rope), tmp_path / "out.gguf")
    factors = values_of(tensors_of(tmp_path / "out.gguf")["rope_freqs.weight"])
    assert factors.shape == (16,)
    assert float(factors[0]) == 1.0
    assert float(factors[-1]) == pytest.approx(8.0)


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, whose tokenizer may be changed."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def change_tokenizer(folder: Path, **parts) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_what_a_configuration_says_of_yarn_stands_in_the_file():
    """llama.cpp multiplies its own attention factor, 1 + 0.1 ln factor, by the one in the file."""

    def yarn(**own):
        rope = {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
            "original_max_position_embeddings": 64, **own,
        }  # fmt: skip
        config = Qwen2Config(
            hidden_size=32, num_attention_heads=4, max_position_embeddings=256, rope_parameters=rope
        )
        found, start = settings(config), "rope.scaling."
        return {key.removeprefix(start): found[key] for key in found if key.startswith(start)}

    plain, own = yarn(), 1 + 0.1 * math.log(4)
    assert plain == {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    assert yarn(attention_factor=1.0, beta_fast=64, beta_slow=2) == plain | {
        "attn_factor": pytest.approx(1 / own), "yarn_beta_fast": 64.0, "yarn_beta_slow": 2.0,
    }  # fmt: skip
    wanted = (1 + 0.0707 * math.log(4)) / own / own
    assert yarn(mscale=0.707, mscale_all_dim=1.0)["attn_factor"] == pytest.approx(wanted)


def test_a_byte_level_tokenizer_stands_in_the_file_as_it_is(tiny_model, tmp_path):
    """Tokens by number, merges in order, kinds, the way of cutting, the end, the template."""
    write(tiny_model, tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert field(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in model["merges"]]
    kinds = field(reader, "tokenizer.ggml.token_type")
    assert [at for at, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL] == [0, 1, 2]
    assert field(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert field(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert field(reader, "tokenizer.ggml.add_bos_token") is False
    assert field(reader, "tokenizer.chat_template") == tokenizer.chat_template


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "smaug-bpe", "smollm", "gpt-2"])
def test_ways_of_cutting_are_told_apart(name, folder):
    """By the definitions that transformers has for them; Llama 3 keeps whole words unmerged."""
    tiktoken = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    level = ByteLevel(add_prefix_space=False, use_regex=name in ("smollm", "gpt-2"))
    before = {
        "qwen2": [Split(Regex(PRETOKENIZE_REGEX), "isolated")],
        "smollm": [Digits(individual_digits=True)],
        "gpt-2": [],
    }.get(name, [Split(Regex(tiktoken), "isolated")])
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.pre_tokenizer = Sequence([*before, level])
    model = json.loads(raw.to_str())["model"] | {"ignore_merges": name == "llama-bpe"}
    (folder / "tokenizer.json").write_text(raw.to_str())
    change_tokenizer(folder, model=model)
    assert read_tokens(folder).values["tokenizer.ggml.pre"] == name


def test_the_first_token_is_added_only_if_the_training_had_it(folder):
    """The chat template says so, not the tokenizer; without one the tokenizer does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = tokenizer.convert_ids_to_tokens(0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, 0)]
    )
    tokenizer.bos_token = first
    plain = tokenizer.chat_template
    for template, begins in ((plain, False), ("{{ bos_token }}" + plain, True), (None, True)):
        tokenizer.chat_template = template
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        found = read_tokens(folder)
        assert found.begins is begins
        assert found.values["tokenizer.ggml.add_bos_token"] is begins
        assert found.values["tokenizer.ggml.add_eos_token"] is False


def test_all_ends_are_named_and_rows_of_embeddings_without_a_token(folder):
    """llama.cpp wants a name for each row of embeddings and each end token."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    found = read_tokens(folder, 410)
    assert found.ends == [2, 0]
    assert found.values["tokenizer.ggml.eot_token_id"] == 0
    names, kinds = (found.values[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert len(set(names)) == len(kinds) == 410
    assert kinds[405] == gguf.TokenType.UNUSED


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            r"the way this tokenizer cuts texts is not known[\s\S]*gpt-2, smollm, qwen2, llama-bpe",
        ),
        ("model", {"byte_fallback": True}, "does not merge bytes"),  # such as that of Llama 2
    ],
    ids=["unknown-way", "no-bytes"],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(part, change, said, folder):
    """Its name is never guessed: the ways that are known are listed."""
    before = json.loads((folder / "tokenizer.json").read_text())[part]
    change_tokenizer(folder, **{part: before | change})
    with pytest.raises(InputError, match=rf"{said}[\s\S]*--to merged[\s\S]*convert_hf_to_gguf.py"):
        read_tokens(folder)


@pytest.mark.parametrize(
    ("family", "keys", "said"),
    [
        ("mixtral", {},
         r"'mixtral' model is not supported[\s\S]*llama, qwen2, qwen3[\s\S]*convert_hf_to_gguf.py"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window is True"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "rope_type 'dynamic'"),
    ],
)  # fmt: skip
def test_a_family_or_a_setting_that_is_not_supported_is_refused(family, keys, said):
    """It would answer wrongly in llama.cpp; the error names the supported ones and a way out."""
    config = AutoConfig.for_model(family, **{**sizes(family), **keys})
    with pytest.raises(InputError, match=said):
        check_family(config, "model")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_that_computes_no_numbers_is_not_compared(tmp_path, number):
    """Its first token would be the most likely one everywhere, in llama.cpp too."""
    loaded = AutoModelForCausalLM.from_pretrained(tiny("llama", tmp_path / "model"))
    with torch.no_grad():
        loaded.model.layers[0].self_attn.q_proj.weight[0, 0] = number
    with pytest.raises(InputError, match="NaN"):
        _answer(loaded, list(range(3, 40)), [2], 4)
