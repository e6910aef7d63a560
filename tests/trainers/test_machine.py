"""The process of a stage: its command and libraries, and what it does on a GPU, seen without one."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("torch")


import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments
from transformers.integrations.accelerate import _get_device_map
from trl.kernels import chunked_logprob
from trl.trainer import utils

from advisor.ground.errors import InputError, TrainingFailed
from advisor.methods import kernels as installed
from tests.fake_model import write_fake_model
from trainers import __main__ as entry
from trainers.job.files import read_json
from trainers.job.job import JUDGE, TRAIN
from trainers.rewards.sources import load_reward_model
from trainers.start import kernels
from trainers.start.loading import WEIGHTS_SHARE, dtype_faults, is_spread, load_base, spread
from trainers.step import settings
from trainers.step.sharding import make_divisible
from trainers.tools.results import Result, load_whole

GPU = torch.device("cuda", 0)


@pytest.fixture
def loads(monkeypatch):
    """Every `from_pretrained` of a model, with its options, and every `.to` of what it returned."""
    seen = []

    class Loaded(torch.nn.Module):
        config = transformers.LlamaConfig()

        def to(self, *where, **more):
            seen[-1]["moved"] = where
            return self

    def load(cls, source, **options):
        seen.append(options)
        nothing = dict.fromkeys(("missing_keys", "unexpected_keys", "mismatched_keys"), ())
        return (Loaded(), nothing) if options.get("output_loading_info") else Loaded()

    for head in ("CausalLM", "SequenceClassification"):
        monkeypatch.setattr(
            getattr(transformers, f"AutoModelFor{head}"), "from_pretrained", classmethod(load)
        )
    return seen


def test_weights_are_read_straight_into_the_gpu(make, loads, tmp_path):
    """Eight processes must not hold eight copies of any model in the host's memory first."""
    for keys, head in (
        ({}, "CausalLM"),
        ({"quantization": "nf4"}, "CausalLM"),
        ({"quantization": "int8"}, "SequenceClassification"),
    ):
        load_base(make(**keys), GPU, head=head)
    job = make()
    numbers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = {"model_type": "llama", "num_attention_heads": 2, "vocab_size": 16, **numbers}
    scores = {"architectures": ["LlamaForSequenceClassification"], "tie_word_embeddings": True}
    write_fake_model(tmp_path, {**config, **scores})
    load_reward_model(job, tmp_path, GPU)
    write_fake_model(tmp_path, config)
    result = Result(label="x", folder=tmp_path, base=str(tmp_path), job=job)
    load_whole(result, str(tmp_path), "cuda:0")
    assert [options["device_map"] for options in loads] == [{"": GPU}] * 5
    assert not any("moved" in options for options in loads[:3])
    load_base(job, torch.device("cpu"))
    assert "device_map" not in loads[-1]


def test_triton_needs_a_compiler_and_the_header_files_of_python(monkeypatch, tmp_path):
    """A slim container lacks triton, gcc or Python.h, and the first step would fail."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    tools = {"triton": True, "gcc": "/usr/bin/gcc"}
    monkeypatch.setattr(installed, "find_spec", lambda name: tools.get(name))
    monkeypatch.setattr(installed.shutil, "which", lambda name: tools.get(Path(name).name))
    monkeypatch.setattr(
        installed.sysconfig, "get_paths", lambda: {"include": str(tmp_path / "include")}
    )
    for change, why in (
        (lambda: None, ""),
        (lambda: tools.update(gcc=None), "no C compiler"),
        (lambda: tools.update(clang="/usr/bin/clang"), ""),
        (lambda: monkeypatch.setenv("CC", "icc"), "CC names icc, which is not there"),
        (lambda: monkeypatch.delenv("CC"), ""),
        ((tmp_path / "include" / "Python.h").unlink, "Python.h is missing"),
        (lambda: tools.update(triton=None), "triton is not installed"),
    ):
        change()
        said = kernels.why_no_triton()
        assert why in said
        assert bool(said) is bool(why)


def test_without_triton_trl_computes_in_plain_torch_and_the_run_says_so(monkeypatch):
    """TRL takes Triton wherever it is installed; here it takes its tiles in torch."""
    monkeypatch.setattr(chunked_logprob, "_TRITON_AVAILABLE", True)
    monkeypatch.setattr(utils, "is_triton_available", lambda: True)
    monkeypatch.setattr(kernels, "why_no_triton", lambda: "there is no C compiler (gcc)")
    assert kernels.use_triton_if_it_works("cpu") == ""
    assert chunked_logprob._use_triton(GPU)
    note = kernels.use_triton_if_it_works("cuda")
    assert "without Triton's kernels, because there is no C compiler (gcc)" in note
    assert not chunked_logprob._use_triton(GPU)
    assert not utils.is_triton_available()
    monkeypatch.setattr(kernels, "why_no_triton", lambda: "")
    assert kernels.use_triton_if_it_works("cuda") == ""


@pytest.fixture
def gpu_with_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


def test_a_kernel_package_for_another_torch_is_told_before_the_model_loads(
    make, monkeypatch, tmp_path, gpu_with_bf16
):
    """'undefined symbol' becomes: which package, with which torch, and what to do."""
    job = make(attention="flash_attention_2", weights_dtype="bfloat16")
    (fault,) = dtype_faults(job, GPU)
    said = "needs the package flash-attn or kernels: the package flash-attn is not"
    assert said in fault.headline
    assert fault.hint.startswith("pip install 'kernels>=0.18")
    symbol = "flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi"
    (tmp_path / "flash_attn.py").write_text(f"raise ImportError({symbol!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = dtype_faults(job, GPU)
    assert f"needs flash-attn, which cannot be loaded: {symbol[:38]}" in fault.headline
    assert "built for another torch" in fault.hint
    assert fault.allowed.startswith("attention: sdpa")
    (tmp_path / "flash_attn.py").write_text("")
    sys.modules.pop("flash_attn", None)
    assert dtype_faults(job, GPU) == []


@pytest.mark.parametrize(
    "keys", [{"quantization": "nf4"}, {"optimizer": "adamw_8bit"}, {"optimizer": "paged_adamw"}]
)
def test_a_bitsandbytes_without_a_library_for_the_gpu_is_refused(make, gpu_with_bf16, keys):
    """The bitsandbytes here is one for the CPU: on a GPU its first step would fail."""
    (fault,) = dtype_faults(make(**keys), GPU)
    assert "bitsandbytes" in fault.headline
    assert "cannot use this GPU" in fault.headline
    assert dtype_faults(make(), GPU) == []


def test_a_trainer_started_by_hand_uses_one_gpu(make, monkeypatch):
    """transformers would split each batch over eight visible GPUs (nn.DataParallel)."""

    def eight(self):
        self._n_gpu = 8
        return GPU

    job = make()
    arguments = settings.training_arguments(job, torch.device("cpu"), steps=3)
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(eight))
    config = settings.build_config(TrainingArguments, arguments, job)
    assert (config.n_gpu, config.train_batch_size) == (1, job.stage.micro_batch_size)


def test_each_process_leaves_its_own_error(make, monkeypatch, capsys):
    """A process other than the first leaves its error, with its number and the time."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    job = make()
    for text, what, is_lost in (
        ("NCCL error: Cuda failure 2 'out of memory'", "out of memory", None),
        ("[gloo/pair.cc:534] Connection closed by peer", "", True),
    ):
        error = entry.explain_error(RuntimeError(text), job)
        assert isinstance(error, TrainingFailed)
        assert error.faults[0].headline.startswith(what)
        assert entry.record_failure(job, error) == 5
        record = read_json(job.output / "error-rank3.json")
        assert (record["rank"], record.get("lost_others")) == (3, is_lost)
        assert record["at_s"] > 1.7e9
    assert "process 3: " in capsys.readouterr().err
    assert not (job.output / "error.json").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = entry.explain_error(RuntimeError("Connection closed by peer"), job)
    assert "unexpected RuntimeError" in alone.faults[0].headline


FAULTS = """
import resource
from types import SimpleNamespace
from trainers.job.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step = [bytearray(b"x") * 16_000_000 for _ in range(3)]
        del step
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory(SimpleNamespace(type="cuda"))
on_gpu = faults()
keep_freed_memory(SimpleNamespace(type="cpu"))
faults()
print(on_gpu, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt of glibc")
def test_memory_of_a_step_is_kept_for_the_next():
    """glibc would give it back, and the kernel clear each page again."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], stdout=subprocess.PIPE, text=True, check=True
    )
    on_gpu, on_cpu = map(int, done.stdout.split())
    assert on_gpu > 4 * 3 * 16_000_000 / 4096 / 2
    assert on_cpu < on_gpu / 100


ENDS = """
from trainers.job.machine import run_and_leave

class Held:
    def __del__(self):
        print("taken down")

held = Held()
import sys
sys.exit(run_and_leave(lambda: {main}))
"""


@pytest.mark.parametrize(("main", "code"), [("0", 0), ("3", 3), ("sys.exit(2)", 2), ("1 / 0", 1)])
def test_one_of_several_processes_ends_before_the_interpreter_is_taken_down(main, code):
    """Threads of gloo that ask for the interpreter's lock by then abort the process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ENDS.format(main=main)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (code, main == "1 / 0")
    assert "taken down" not in done.stdout


def judging(device=GPU, part=JUDGE):
    """Where a model goes, as arguments of from_pretrained."""
    return spread(types.SimpleNamespace(part=part), device)


def test_a_judged_model_that_fits_on_one_gpu_stays_there_and_a_larger_one_is_spread(monkeypatch):
    """The first layers are with the embeddings; no block is divided or goes to host or disk."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    with torch.device("meta"):
        config = transformers.LlamaConfig(vocab_size=256, num_attention_heads=4, **sizes)
        model = transformers.LlamaForCausalLM(config)
    size = sum(one.nbytes for one in model.parameters())

    def placed(share):
        """Module -> GPU, as transformers places them on GPUs that are not there."""
        free_bytes = int(share * size / WEIGHTS_SHARE)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free_bytes, 2**40))
        return _get_device_map(model, *judging().values(), None)

    assert set(placed(1.5).values()) == {0}
    found = placed(0.7)
    assert (set(found.values()), found["model.embed_tokens"]) == ({0, 1}, 0)
    layers = [found[f"model.layers.{number}"] for number in range(8)]
    assert layers == sorted(layers)
    assert is_spread(types.SimpleNamespace(hf_device_map=found))
    assert not is_spread(types.SimpleNamespace(hf_device_map={"": 0}))
    assert [judging(part=TRAIN), judging(part=None), judging(torch.device("cpu"))] == [{}] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert judging() == {}


def with_copies(folder, *names, tied=False):
    """The tiny model, whose embeddings are its output layer, with copies of modules that train."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    keys = {"modules_to_save": list(names), "ensure_weight_tying": tied}
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], **keys))


def ties(model):
    """The names of parameters that are one tensor."""
    found = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(one), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def test_what_was_tied_is_tied_again_and_nothing_else(tiny_model):
    """Moving a model takes its ties apart; transformers' way to tie fails at copies that train."""
    model = with_copies(tiny_model, "embed_tokens", "lm_head", tied=True)
    before = ties(model)
    assert before
    make_divisible(model, mixed=False)
    model.to("meta")
    model.tie_weights()
    assert ties(model) == before
    # The copy and the original would be parts of different units.
    with pytest.raises(InputError, match="modules_to_save names the embeddings alone"):
        make_divisible(with_copies(tiny_model, "embed_tokens"), mixed=False)


def test_each_parameter_has_memory_of_its_own(tiny_model):
    """A process that reads no weights has a new head without; addresses tell parameters apart."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    model.score = torch.nn.Linear(64, 2, device="meta")
    make_divisible(model, mixed=False)
    addresses = [one.data_ptr() for one in model.parameters()]
    assert 0 not in addresses
    assert len(set(addresses)) == len(addresses)


def test_what_trains_under_mixed_precision_needs_no_copy(tiny_model):
    """A process without weights has float32 where accelerate would copy; tied ones stay one."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.bfloat16, device_map={"": "meta"}
    )
    model.lm_head.weight = model.model.embed_tokens.weight
    model.model.norm.weight.requires_grad_(False)
    make_divisible(model, mixed=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.bfloat16
