"""What a trainer does on a GPU, seen without one: where weights go, which kernels it uses, what it
refuses before the model loads.
"""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers

from advisor.ground.errors import TrainingFailed
from advisor.methods import kernels as installed
from tests.fake_model import write_fake_model
from trainers import __main__ as entry
from trainers.start import kernels
from trainers.start.loading import dtype_faults, load_base
from trainers.step import settings

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


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
@pytest.mark.parametrize("head", ["CausalLM", "SequenceClassification"])
def test_weights_are_read_straight_into_the_gpu(make, loads, quantization, head):
    """Eight processes must not hold eight copies of the model in the host's memory first."""
    job = make(quantization=quantization)
    load_base(job, GPU, head=head)
    assert loads[0]["device_map"] == {"": GPU}
    assert "moved" not in loads[0]


def test_on_the_cpu_nothing_is_placed(make, loads):
    """Host memory is the device: a map would only make loading slower."""
    load_base(make(), torch.device("cpu"))
    assert "device_map" not in loads[0]


def test_a_reward_model_and_a_result_are_read_straight_into_the_gpu(make, loads, tmp_path):
    """The models beside the trained one, too: rewards, what is checked, chat and merge."""
    from trainers.rewards.sources import load_reward_model
    from trainers.tools.results import Result, load_whole

    job = make()
    numbers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = {"model_type": "llama", "num_attention_heads": 2, "vocab_size": 16, **numbers}
    scores = {"architectures": ["LlamaForSequenceClassification"], "tie_word_embeddings": True}
    write_fake_model(tmp_path, {**config, **scores})
    load_reward_model(job, tmp_path, GPU)
    write_fake_model(tmp_path, config)
    result = Result(label="x", folder=tmp_path, base=str(tmp_path), job=job)
    load_whole(result, str(tmp_path), "cuda:0")
    assert [options["device_map"] for options in loads] == [{"": GPU}, {"": GPU}]


# --------------------------------------------------------------------------- kernels


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """A machine with triton, gcc and Python.h; a test takes one away."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    found = {"triton": True, "gcc": "/usr/bin/gcc"}
    monkeypatch.setattr(installed, "find_spec", lambda name: found.get(name))
    monkeypatch.setattr(installed.shutil, "which", lambda name: found.get(Path(name).name))
    monkeypatch.setattr(
        installed.sysconfig, "get_paths", lambda: {"include": str(tmp_path / "include")}
    )
    return found


def test_triton_needs_a_compiler_and_the_header_files_of_python(tools, monkeypatch, tmp_path):
    """A slim container lacks one of them, and the first step would fail."""
    assert kernels.why_no_triton() == ""
    tools["gcc"] = None
    assert "no C compiler" in kernels.why_no_triton()
    tools["clang"] = "/usr/bin/clang"
    assert kernels.why_no_triton() == ""
    monkeypatch.setenv("CC", "icc")
    assert kernels.why_no_triton() == "CC names icc, which is not there"
    monkeypatch.delenv("CC")
    (tmp_path / "include" / "Python.h").unlink()
    assert "Python.h is missing" in kernels.why_no_triton()
    tools["triton"] = None
    assert "triton is not installed" in kernels.why_no_triton()


def test_without_triton_trl_computes_in_plain_torch_and_the_run_says_so(monkeypatch):
    """TRL takes Triton wherever it is installed; here it takes its tiles in torch."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

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
    assert (
        "needs the package flash-attn or kernels: the package flash-attn is not" in fault.headline
    )
    assert fault.hint.startswith("pip install 'kernels>=0.18")
    (tmp_path / "flash_attn.py").write_text(
        "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = dtype_faults(job, GPU)
    assert (
        "needs flash-attn, which cannot be loaded: flash_attn_2_cuda.so: undefined symbol"
        in fault.headline
    )
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


# --------------------------------------------------------------------------- several GPUs


def test_a_trainer_started_by_hand_uses_one_gpu(make, monkeypatch):
    """With eight visible GPUs and one process, transformers would split each batch over all
    (nn.DataParallel); here one is used.
    """
    from transformers import TrainingArguments

    job = make()
    arguments = settings.training_arguments(job, torch.device("cpu"), steps=3)
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: eight(self)))

    def eight(self):
        self._n_gpu = 8
        return GPU

    config = settings.build_config(TrainingArguments, arguments, job)
    assert config.n_gpu == 1
    assert config.train_batch_size == job.stage.micro_batch_size


# --------------------------------------------------------------------------- errors of one process


def test_each_process_leaves_its_own_error(make, monkeypatch, capsys):
    """A process other than the first leaves its error, with its number and the time."""
    from trainers.job.files import read_json

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    job = make()
    memory = entry.explain_error(RuntimeError("NCCL error: Cuda failure 2 'out of memory'"), job)
    assert memory.faults[0].headline.startswith("out of memory")
    lost = entry.explain_error(RuntimeError("[gloo/pair.cc:534] Connection closed by peer"), job)
    assert isinstance(lost, TrainingFailed)
    for error, is_lost in ((memory, None), (lost, True)):
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
