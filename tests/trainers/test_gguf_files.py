"""GGUF files of random models and of runs, and what a proof finds, by stubs and by llama.cpp.

ADVISE_LLAMA_CPP=FOLDER python -m pytest -n0 -m long tests/trainers/test_gguf_files.py"""

import inspect
import json
import math
import shutil
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

import os
import re
from types import SimpleNamespace
from unittest.mock import Mock

from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from advisor.export.exporter import ExportRequest, exporters
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from tests.trainers.families import sizes, tiny
from tests.trainers.test_results import lora_run
from trainers.tools.gguf import model
from trainers.tools.gguf.export import Job, check_kind, export
from trainers.tools.gguf.model import FAMILIES, NEIGHBOURS, check_family, settings, write_model
from trainers.tools.gguf.proof import (
    AGREEMENT,
    OTHERS,
    QUESTIONS,
    VARIABLE,
    Answer,
    Proof,
    Reference,
    _answer,
    compare,
    find_llama_server,
    prove,
    reference_of,
)

# What llama.cpp's loader reads (src/llama-arch.cpp), written down here beside the package's tables.
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


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
    assert (factors.shape, float(factors[0])) == ((16,), 1.0)
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
    assert (found.ends, found.values["tokenizer.ggml.eot_token_id"]) == ([2, 0], 0)
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


LOUDER = 6.0  # attention then decides what comes next
END = 2


def reference(places: int = 100, *, stopped: bool = True, gap: float = 0.7) -> Reference:
    """One answer of so many tokens; at each place 5 is likely, 6 less by so many nats; 2 ends it."""
    tokens = [5] * (places - 1) + [END if stopped else 5]
    logits = torch.full((places, 10), -1.0, dtype=torch.float64)
    logits[:, 6] = 3.0 - gap
    logits[range(places), tokens] = 3.0
    readings = [("hello", False, [10, 11]), ("a  b", False, [12])]
    readings += [(text, True, [1, *tokens]) for text, _, tokens in readings]
    answer = Answer(prompt=[1, 10], tokens=tokens, logits_TV=logits)
    return Reference(readings=readings, answers=[answer], ends=[END], inside=[5])


def proof(
    of: Reference,
    kind: str = "F16",
    *,
    tokens=lambda text, known: known,
    ends=END.__eq__,
    choice=lambda at, token: token,
) -> Proof:
    """The proof by a server that is as the reference but for these tokens, ends and choices."""

    def answered(path, asked):
        if path == "/tokenize":
            known = {(text, whole): tokens for text, whole, tokens in of.readings}
            known["a", False] = [7]
            text, whole = asked["content"], asked["add_special"]
            return {"tokens": tokens(text, list(known[text, whole]))}
        forced, place = asked["logit_bias"][0][0], len(asked["prompt"]) - 2
        best = choice(place, of.answers[0].tokens[place])
        return {
            "stop_type": "eos" if ends(forced) else "limit",
            "completion_probabilities": [{"id": forced, "top_logprobs": [{"id": best}]}],
        }

    needed = AGREEMENT.get(kind) or AGREEMENT.get(kind[:4], OTHERS)
    found = Proof(kind=kind, needed=needed, texts=2, prompts=1)
    compare(found, of, answered)
    return found


def test_a_server_that_agrees_everywhere_proves_the_file():
    """Every number is recorded, and a base model that never stops is proved by its end tokens."""
    assert proof(reference()).lines() == [
        "proved with llama.cpp, against transformers:",
        "  2 texts have the same tokens",
        "  100 of 100 tokens of 1 greedy answers are the same; needed: 95%",
        "  1 of 1 answers that end do so at the same token",
    ]
    endless = proof(reference(stopped=False))
    assert endless.faults == []
    assert "0 of 0 answers that end" in endless.lines()[-1]


@pytest.mark.parametrize(
    ("server", "fault"),
    [
        (
            {"tokens": lambda text, known: [99] if text == "a  b" else known},
            "the text 'a  b' has other tokens in llama.cpp, from token 0: [99] instead of [12]",
        ),
        ({"ends": lambda _: False}, "llama.cpp does not stop at token 2, which ends an answer"),
        ({"ends": lambda _: True}, "llama.cpp stops at token 5 inside an answer, where transformers"),
    ],
    ids=["other-tokens", "no-stop", "early-stop"],
)  # fmt: skip
def test_other_tokens_a_missing_stop_and_one_inside_an_answer_are_faults(server, fault):
    """Both readings of a text are named, since that is how a tokenizer is mended."""
    found = proof(reference(), **server)
    assert found.faults[0].startswith(fault)
    assert found.lines()[0].startswith(f"not the model: {fault[:8]}")


@pytest.mark.parametrize(
    ("count", "gap", "kind", "fault"),
    [
        (2, 0.01, "F16", ""),
        (2, 0.2, "F16", "where transformers is sure: 0.2 apart"),
        (5, 0.01, "BF16", ""),
        (6, 0.01, "BF16", "only 94.0% of 100 tokens are the same; BF16 needs 95%"),
        (15, 0.2, "Q8_0", ""),
        (16, 0.2, "Q8_0", "Q8_0 needs 85%"),
        (31, 0.2, "Q4_K_M", "Q4_K_M needs 70%"),
        (41, 0.2, "Q2_K", "Q2_K needs 60%"),
    ],
)
def test_few_other_tokens_are_allowed_by_type(count, gap, kind, fault):
    """In 16 bit near ties alone, and five of a hundred; more in smaller types."""
    found = proof(reference(gap=gap), kind, choice=lambda at, token: 6 if at < count else token)
    assert (found.same, found.ties) == (100 - count, pytest.approx([gap] * count))
    assert any(fault in one for one in found.faults) if fault else found.faults == []


def program(folder: Path, does: str = "", name: str = "llama-server") -> Path:
    """A program of llama.cpp in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_llama_server_is_found_where_it_is_named_and_on_the_path(tmp_path, monkeypatch):
    """A machine without it has none, and no error; a wrong name is no reason to take another."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_llama_server() is None
    on_path, named = program(tmp_path / "bin"), program(tmp_path / "build" / "bin")
    assert find_llama_server() == on_path
    for place in (named, tmp_path / "build"):
        monkeypatch.setenv(VARIABLE, str(place))
        assert find_llama_server() == named
    monkeypatch.setenv(VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(MachineNotReady, match="there is no llama-server there"):
        find_llama_server()


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
@pytest.mark.parametrize(
    ("does", "fault"),
    [
        ("echo unknown model architecture; exit 3", "exit 3.*unknown model architecture"),
        ("kill -11 $$", "exit -11"),
        ("exec sleep 60", r"did not answer in 0\.5 s"),
        ("exec /no/such/program", "exit 127"),
    ],
)
def test_a_server_that_crashes_or_hangs_is_a_fault_of_the_proof(tmp_path, monkeypatch, does, fault):
    """Not the end of the export: the file stays, under the name that says so."""
    monkeypatch.setattr("trainers.tools.gguf.proof.LIMIT_S", 0.5)
    found = prove(program(tmp_path, does), tmp_path / "x.gguf", reference(), "F16")
    assert re.search(fault, found.faults[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1})


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.setattr("trainers.tools.gguf.export.find_llama_server", lambda: None)


@pytest.fixture
def engine(monkeypatch):
    """A stub of llama-server that finds these faults and computes what transformers computes."""
    stub = SimpleNamespace(faults=[], kinds=[])

    def prove(program, path, of, kind):
        assert gguf.GGUFReader(path).tensors
        stub.kinds.append(kind)
        known = {"texts": 1, "prompts": len(of.answers), "faults": stub.faults}
        return Proof(kind=kind, needed=0.95, **known)

    monkeypatch.setattr("trainers.tools.gguf.export.prove", prove)
    monkeypatch.setattr(
        "trainers.tools.gguf.export.find_llama_server", lambda: Path("llama-server")
    )
    monkeypatch.setattr("trainers.tools.gguf.proof.LONGEST_ANSWER", 8)
    monkeypatch.setattr("trainers.tools.gguf.proof.ANSWER_TOKENS", 4)
    return stub


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def recorded(folder: Path) -> dict:
    """What the proof of the only file says."""
    (record,) = json.loads((folder / "proof.json").read_text())["files"]
    return record


def test_a_proved_file_has_a_record(run, engine, tmp_path, capsys):
    """A second export does not overwrite it."""
    job = Job(run=run, out=tmp_path / "out", say=print)
    (file,) = export(job)
    assert names(job.out) == ["proof.json", f"{run.name}-F16.gguf"]
    text = capsys.readouterr().out
    assert "merged into the original weights" in text
    assert "proved with llama.cpp" in text
    assert f"llama-server -m {file} --jinja" in text
    record = recorded(job.out)
    assert (record["proved"], record["kind"], record["proof"]["faults"]) == (True, "F16", [])
    assert engine.kinds == ["F16"]  # whose limits hold
    with pytest.raises(InputError, match="is already there"):
        export(job)


def test_a_file_that_differs_shows_in_the_name_and_the_exit_code(run, engine, tmp_path, capsys):
    """Exit code 5, as for a merged model that differs; what differs is said."""
    engine.faults.append("only 0.0% of 4 tokens are the same")
    with pytest.raises(TrainingFailed, match=r"not the model: .*-Q8_0\.differs\.gguf") as error:
        export(Job(run=run, out=tmp_path / "out", kind="Q8_0", say=print))
    assert error.value.exit_code == 5
    assert names(tmp_path / "out") == ["proof.json", f"{run.name}-Q8_0.differs.gguf"]
    said = capsys.readouterr().out
    assert "not the model: only 0.0%" in said
    assert "serve it" not in said


def test_without_llama_cpp_the_file_is_written_and_not_compared(
    run, nowhere, tmp_path, request, capsys
):
    """The run says what to install, and writes the file again to compare it once it is there."""
    job = Job(run=run, out=tmp_path / "out", say=print)
    (file,) = export(job)
    assert names(job.out) == ["proof.json", f"{run.name}-F16.gguf"]
    said = capsys.readouterr().out
    assert "written; not compared with the trained model" in said
    assert "install llama.cpp" in said.splitlines()[-1]
    assert (recorded(job.out)["proved"], recorded(job.out)["proof"]) == (False, None)
    request.getfixturevalue("engine")
    assert export(job) == [file]
    assert recorded(job.out)["proved"]


def test_tensors_that_transformers_leaves_out_are_counted(nowhere, tiny_model, tmp_path, capsys):
    """Layers that predict further tokens are in no GGUF file: that is said, and stays in the record."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    more = {f"mtp.{name}.weight": weights["model.norm.weight"].clone() for name in ("norm", "fc")}
    save_file(weights | more, base / "model.safetensors", metadata={"format": "pt"})
    export(Job(run=lora_run(tmp_path / "run", base, {"legal": 1}), out=tmp_path / "out", say=print))
    note = "since transformers does not read them (2 in all): mtp.fc.weight, mtp.norm.weight"
    assert note in capsys.readouterr().out
    assert any(note in one for one in recorded(tmp_path / "out")["notes"])


@pytest.mark.parametrize(
    ("program", "proved"), [("nowhere", 0), pytest.param("llama_cpp", 2, marks=pytest.mark.long)]
)
def test_each_task_becomes_a_model_of_its_own(
    program, proved, tiny_model, tmp_path, request, capsys
):
    """Each, or one by `--only`, is merged into their base, and computed as PEFT computes it."""
    request.getfixturevalue(program)
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    export(Job(run=run, out=tmp_path / "out", say=print))
    assert names(tmp_path / "out") == ["proof.json", "run-hr-F16.gguf", "run-legal-F16.gguf"]
    assert capsys.readouterr().out.count("proved with llama.cpp") == proved
    export(Job(run=run, out=tmp_path / "one", say=print, only="hr"))
    assert names(tmp_path / "one") == ["proof.json", "run-F16.gguf"]


CANNOT = r"a GGUF file cannot hold it[\s\S]*serve it with transformers and PEFT"


@pytest.mark.parametrize(
    ("update", "only", "why"),
    [
        ("prefix", None, CANNOT),
        ("adapter", None, CANNOT),
        ("lora", "hr", r"no such result[\s\S]*legal"),
    ],
    ids=["prefix", "adapter", "not-there"],
)
def test_what_adds_layers_and_what_is_not_there_is_refused(
    update, only, why, nowhere, tiny_model, tmp_path
):
    """With what can be done, or those that are there, before anything is written."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1}, update=update)
    with pytest.raises(InputError, match=why):
        export(Job(run=run, out=tmp_path / "out", say=print, only=only))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_and_a_stop_leave_nothing(run, nowhere, tmp_path, monkeypatch):
    """The number of weights says beforehand that a disk is too full; a stop leaves no half file."""
    job, inside = Job(run=run, out=tmp_path / "out", say=print), "trainers.tools.gguf."
    with monkeypatch.context() as patch:
        patch.setattr(f"{inside}export.free_bytes", lambda path: 1000)
        with pytest.raises(MachineNotReady, match=r"needs about .* MiB, and 0\.0 MiB are free"):
            export(job)
    assert not job.out.exists()
    monkeypatch.setattr(f"{inside}model.numbers", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(job)
    assert names(job.out) == []


@pytest.mark.parametrize(
    ("kind", "fault", "why"),
    [
        ("Q4KM", InputError, r"unknown type of GGUF file 'Q4KM'[\s\S]*did you mean 'Q4_K_M'\?"),
        ("Q4_K_M", MachineNotReady, r"Q4_K_M is made by llama[\s\S]*ollama create -q Q4_K_M"),
    ],
)
def test_unknown_types_and_those_that_llama_cpp_makes_are_refused(
    kind, fault, why, monkeypatch, tmp_path
):
    """With the nearest one, and the way without its program; 16 bit and Q8_0 need none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    check_kind("Q8_0")
    with pytest.raises(fault, match=why):
        check_kind(kind)


@pytest.mark.light
@pytest.mark.parametrize("to", ["merged:Q8_0", "gguf:"])
def test_a_variant_that_a_form_does_not_have_is_refused(call, to):
    """Exit code 2."""
    code, _, err = call("export", "--to", to)
    assert (code, "has no variant" in err) == (2, True)


@pytest.mark.light
def test_the_type_of_file_goes_to_the_tool_and_a_killed_one_leaves_nothing(tmp_path, monkeypatch):
    """Temporary files are removed whatever became of it."""
    for name, value in (("device_of", "cpu"), ("record_of", None), ("writing_stages", [])):
        monkeypatch.setattr(f"advisor.extras.gguf.extra.{name}", lambda *_, is_=value, **__: is_)
    out, seen = tmp_path / "out", []

    def killed(*arguments):
        seen.append(arguments)
        (out / ".advise-tmp-merged").mkdir(parents=True)
        (out / ".advise-tmp-x.gguf").write_text("half")
        raise KeyboardInterrupt

    wanted = ExportRequest(
        source=tmp_path, out=out, only="hr", say=print, run_tool=killed, variant="Q4_K_M"
    )
    with pytest.raises(KeyboardInterrupt):
        exporters()["gguf"].export(wanted)
    assert not out.exists()
    assert (seen[0][0], seen[0][-4:]) == ("gguf.export", ("--kind", "Q4_K_M", "--only", "hr"))


@pytest.fixture(scope="module")
def llama_cpp():
    found = find_llama_server()
    if found is None:
        pytest.skip("llama-server is not installed: llama.cpp on PATH, or ADVISE_LLAMA_CPP")
    return found


def faults_of(llama_cpp, folder: Path, family: str, kind: str = "", **keys) -> list[str]:
    """What the proof finds of a file of such a model."""
    dtype = torch.bfloat16 if kind else torch.float16
    made = tiny(family, folder / "model", dtype, louder=LOUDER, **keys)
    loaded, tokenizer, tokens, kind, _ = write(made, folder / "out.gguf", kind=kind)
    reference = reference_of(loaded.float(), tokenizer, tokens, QUESTIONS[:2])
    return prove(llama_cpp, folder / "out.gguf", reference, kind).faults


def rope(kind, factor, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": factor, **more}}


LLAMA3 = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
CASES = [
    *((family, {}) for family in sorted(FAMILIES)), ("llama", {"kind": "Q8_0"}),
    ("llama", {"tie_word_embeddings": True}), ("llama", rope("llama3", 8.0, **LLAMA3)),
    ("llama", rope("linear", 4.0)),
    ("qwen2", rope("yarn", 4.0, original_max_position_embeddings=64)),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "keys"), CASES, ids=[f"{name}-{'-'.join(keys)}" for name, keys in CASES]
)
def test_llama_cpp_computes_what_transformers_computes(family, keys, llama_cpp, tmp_path):
    """Tokens, answers and ends agree; in eight bits at as many places as the limit asks."""
    assert faults_of(llama_cpp, tmp_path, family, **keys) == []


def exchanged(name: str) -> str:
    """The name of a tensor, with two matrices of a block exchanged."""
    other = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}
    return ".".join(other.get(part, part) for part in name.split("."))


# A name in model.py -> what stands there instead.
MISTAKES = {
    "NEIGHBOURS": lambda plain: tuple({*FAMILIES} - {*plain}),
    "numbers": lambda plain: lambda one, heads: plain(one, heads) + (one.dim() == 1),
    "tensors": lambda plain: (
        lambda loaded: {exchanged(name): tensor for name, tensor in plain(loaded).items()}
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_with_a_mistake_is_not_proved(family, mistake, llama_cpp, tmp_path, monkeypatch):
    """Rows in the wrong order, other norms, two matrices exchanged: each shows."""
    monkeypatch.setattr(model, mistake, MISTAKES[mistake](getattr(model, mistake)))
    faults = faults_of(llama_cpp, tmp_path, family)
    assert any("is sure" in fault or "are the same" in fault for fault in faults)


@pytest.mark.long
def test_a_damaged_file_is_a_fault_of_the_proof(llama_cpp, tmp_path):
    """What llama.cpp says of it is passed on, and nothing crashes."""
    folder, path = tiny("llama", tmp_path / "model", torch.bfloat16), tmp_path / "out.gguf"
    loaded, tokenizer, tokens, *_ = write(folder, path)
    path.write_bytes(path.read_bytes()[:-1000])
    proof = prove(llama_cpp, path, reference_of(loaded, tokenizer, tokens), "BF16")
    assert "gguf" in proof.faults[0].lower() or "load" in proof.faults[0]


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_a_smaller_file_of_llama_cpps_program_is_proved(
    llama_cpp, tiny_model, tmp_path, monkeypatch
):
    """What llama-quantize writes, here a copy, is compared like our own file."""
    there = program(tmp_path / "bin", 'cp "$1" "$2"', "llama-quantize").parent
    monkeypatch.setenv("PATH", str(there), prepend=os.pathsep)
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1})
    (one,) = export(Job(run=run, out=tmp_path / "out", kind="Q4_K_M", say=print))
    assert names(one.parent) == ["proof.json", "run-Q4_K_M.gguf"]
