"""The values that travel: Hardware + Answers + DataProfile + ModelShape = Situation -> Advice ->
Plan -> Run.

Frozen structs of msgspec. `None` means "not known", never zero. Bytes, seconds,
tokens and US dollars inside; render/ alone converts. The Plan lives in plan/model.py, since it is
also a file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from msgspec import Struct, field
from msgspec.structs import replace

# Tokens that a general question and the base's own answer take at least: half for the question,
# with the system text that a template may write.
REPLAY_LEN = 128
# How several GPUs share the work: a whole model on each, or one model split over them.
DDP, FSDP = "ddp", "fsdp"
# The services that get a run's numbers: those that accelerate logs to.
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
TRACKERS: tuple[str, ...] = get_args(Tracker)


class Source(Struct, frozen=True, kw_only=True):
    """Where a number or a statement comes from."""

    title: str
    url: str = ""
    checked: str = ""  # the date somebody read it, ISO
    kind: str = ""  # measured | paper | vendor | derived | assumed | document


# --------------------------------------------------------------------------- the machine


class GpuLink(Struct, frozen=True, kw_only=True):
    """How a kind of GPU reaches others, as its entry in rules/hardware/ says it."""

    kind: str | None = None  # pcie | nvlink | nvlink_bridge | xgmi | unified
    generation: float | None = None  # of NVLink
    both_ways_bytes_per_s: float | None = None  # per GPU, both directions together
    pcie_generation: float | None = None
    pcie_lanes: float | None = None
    vendor: str = ""
    segment: str = ""  # consumer | workstation | datacenter | ...


class GpuSpec(Struct, frozen=True, kw_only=True):
    """What the catalogue (rules/hardware/) knows of one kind of card."""

    id: str
    name: str
    vendor: str
    memory_bytes: int | None
    compute_capability: tuple[int, int] | None
    bf16: bool | None
    bf16_flops: float | None  # dense FLOP/s with fp32 accumulate; fp16 where the card has no bf16
    achieved_flops: float | None  # the best dense matmul anyone measured, FLOP/s
    bandwidth_bytes_per_s: float | None
    power_w: float | None
    price_usd_per_h: float | None  # on demand, the lowest outside marketplaces, else the lowest
    price_note: str = ""  # provider and date of that price
    rented_most: int | None = None  # in one machine of that provider; None: eight and more
    fp8_flops: float | None = None  # dense FLOP/s; None where the GPU has no such units
    fp4_flops: float | None = None
    fp32_flops: float | None = None  # without tensor cores
    half_rate: bool = False  # tensor cores held to half their rate with fp32 accumulate
    link: GpuLink | None = None


class NotSupported(Struct, frozen=True, kw_only=True):
    """A device that this tool cannot train on, and which tools can."""

    id: str  # of rules/hardware/not-supported.yaml
    what: str  # "a Google TPU"
    why: str  # "needs programs compiled by XLA; ..."
    where: tuple[Source, ...]  # tools that train on it, the first one first


class GpuProcess(Struct, frozen=True, kw_only=True):
    """A program that holds memory of a GPU."""

    pid: int
    name: str  # "" where the system does not say
    memory_bytes: int | None


class Gpu(Struct, frozen=True, kw_only=True):
    """One device the process may use."""

    name: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None = None  # None for a card that was named, not probed
    other_processes_bytes: int | None = None
    other_processes: tuple[GpuProcess, ...] = ()
    kept_free_bytes: int = 0  # that advice leaves to a display or to what else a laptop runs
    kept_free_because: str = ""
    shares_ram: bool = False  # its memory is the machine's, in which everything else runs too
    compute_capability: tuple[int, int] | None = None
    bf16: bool | None = None
    uuid: str | None = None
    index: int | None = None  # NVML's, which torch may number otherwise; of an AMD device HIP's
    mig_profile: str | None = None
    spec: GpuSpec | None = None


class Hardware(Struct, frozen=True, kw_only=True):
    """Facts of one machine, probed or stated."""

    kind: str  # cuda | rocm | mps | cpu (no device, or `gpu: none`) | unknown (nothing ruled out)
    origin: Literal["probed", "stated", "unknown"]
    gpus: tuple[Gpu, ...] = ()
    cpu_model: str | None = None  # of the processor: "AMD EPYC 7B13"
    cpu_cores: int | None = None  # that this process may use (affinity)
    cpu_bf16: bool | None = None  # whether the processor multiplies bfloat16 by itself
    ram_total_bytes: int | None = None  # cgroup limit where there is one
    ram_free_bytes: int | None = None
    ram_kept_free_bytes: int = 0  # that advice leaves to the system and to other programs
    disk_free_bytes: int | None = None
    driver_version: str | None = None
    cuda_version: str | None = None  # the newest CUDA the driver supports
    interconnect: str | None = None
    machines: int = 1  # that hold these GPUs, as many each
    # Package -> installed version, None if absent.
    software: Mapping[str, str | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # worth showing: "driver present, no device"
    torch_target: str | None = None  # of the installed PyTorch: "CPU", "CUDA 12.8", "ROCm 6.4"
    problem: str | None = None  # why PyTorch cannot use the probed GPU, with the line to install
    not_supported: NotSupported | None = None  # what was named; `kind` is then unknown

    @property
    def host_memory_bytes(self) -> int | None:
        """The memory of each computer itself, which weights may be offloaded to; of a machine that
        was named it is taken to be twice that of its GPUs together, as machines for rent have it.
        """
        if self.origin == "probed" and self.ram_total_bytes is not None:
            return max(0, self.ram_total_bytes - self.ram_kept_free_bytes)
        sizes = [gpu.memory_total_bytes for gpu in self.gpus]
        return None if None in sizes else 2 * sum(filter(None, sizes)) // self.machines

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory a run on one device may plan with: that of the smallest GPU, or RAM on the CPU,
        less what is kept free for a display or for the system.

        What other programs hold now does not count: they may have ended when the plan is run, and
        the same question gets the same answer an hour later.
        """
        if self.kind == "unknown":
            return None
        if not self.gpus:
            total = self.ram_total_bytes
            return None if total is None else max(0, total - self.ram_kept_free_bytes)
        sizes = [
            max(0, gpu.memory_total_bytes - gpu.kept_free_bytes)
            for gpu in self.gpus
            if gpu.memory_total_bytes is not None
        ]
        return min(sizes) if len(sizes) == len(self.gpus) else None


def as_free_now(hardware: Hardware) -> Hardware:
    """The machine as a run finds it: memory that is free now, as far as it is known."""
    gpus = tuple(
        gpu
        if gpu.memory_free_bytes is None
        else replace(gpu, memory_total_bytes=gpu.memory_free_bytes, kept_free_bytes=0)
        for gpu in hardware.gpus
    )
    if hardware.ram_free_bytes is None:
        return replace(hardware, gpus=gpus)
    return replace(
        hardware, gpus=gpus, ram_total_bytes=hardware.ram_free_bytes, ram_kept_free_bytes=0
    )


# --------------------------------------------------------------------------- what the person says


class Answer(Struct, frozen=True, kw_only=True):
    """One answer and where it came from. Rank of origins: default < file < flag < asked."""

    value: Any
    origin: Literal["default", "file", "flag", "asked"]


class AnswerSet(Struct, frozen=True, kw_only=True, eq=False):
    """Fact id -> answer, for facts that are asked. A fact that is not in it was not stated."""

    known: Mapping[str, Answer] = field(default_factory=dict)
    # Fact or signal -> the place that states it, for errors: "answers.yaml:4:14", "--gpus".
    where: Mapping[str, str] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnswerSet) and self.known == other.known

    def value(self, fact: str, default: Any = None) -> Any:
        answer = self.known.get(fact)
        return default if answer is None else answer.value

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that were stated as true."""
        return tuple(self.value("signals", ()))


# --------------------------------------------------------------------------- the data


class DataFinding(Struct, frozen=True, kw_only=True):
    """Something about the data that a person should know."""

    id: str  # kebab-case, named after the situation: "row-without-answer"
    severity: Literal["error", "warning", "note"]
    text: str
    count: int = 0
    rows: tuple[int, ...] = ()  # 1-based; the first few
    blocks: tuple[str, ...] = ()  # objectives it makes impossible


PRIVATE = ("secret-", "personal-data-")  # how findings begin about what a model should not learn
SHORT = 1024  # tokens: up to here the longest row costs little
FAR = 2.0  # the longest row is no outlier up to so many times the length of 99 % of the rows
FEW = 100  # rows: of fewer, 99 % are all of them, and one outlier would set the length
FAR_OF_FEW = 4.0


class KeptWhole(NamedTuple):
    """How long a row may be and stay whole."""

    tokens: int
    what: str  # the rows that are as long or shorter, in words


class TokenStats(Struct, frozen=True, kw_only=True):
    """Length of one row in tokens."""

    total: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    longest: int
    counted_by: str  # "tokenizer of <model>" or "characters / 4 (approximation)"
    sampled_rows: int | None = None  # None: every row was counted
    histogram: tuple[tuple[int, int], ...] = ()  # (longest of the bin, rows in it)
    request_mean: float | None = None  # of what comes before the answer; None: rows have no parts

    def kept_whole(self) -> KeptWhole:
        """The longest row if it is no outlier, else 99 % of the rows, 95 % of fewer than 100."""
        counted = sum(rows for _, rows in self.histogram)
        if 0 < counted < FEW and self.longest > max(SHORT, FAR_OF_FEW * self.p95):
            return KeptWhole(self.p95, "95 % of the rows")
        if self.longest <= max(SHORT, FAR * self.p99):
            return KeptWhole(self.longest, "the longest row")
        return KeptWhole(self.p99, "99 % of the rows")


class DataProfile(Struct, frozen=True, kw_only=True):
    """What a data file is, measured without torch."""

    path: str
    kind: str  # paired | raw_text | preference | unpaired_feedback | prompts_with_verifier
    format: str  # messages | sharegpt | alpaca | ... (rules/data/formats.yaml)
    mapping: Mapping[str, str]  # role -> column, as understood
    rows: int
    tokens: TokenStats | None
    objectives: tuple[str, ...]  # it can train
    findings: tuple[DataFinding, ...] = ()
    sample: Mapping[str, Any] | None = None  # one row as understood
    digest: str = ""  # of the content
    # certain | likely | guessed | stated (by a mapping): how sure the format is
    confidence: str = ""
    why: str = ""  # what the format was recognised by
    other_ways: tuple[str, ...] = ()  # that it could be read: '--map question=a answer=b'
    # JSON types: turns, scripts, classes, lengths of requests and answers, ...
    measures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """Rows that cannot be used; 0 too if only the first rows were looked at."""
        used, unusable = (int(self.measures.get(f"rows_{one}", 0)) for one in ("used", "unusable"))
        return unusable if used + unusable == self.rows else 0


# --------------------------------------------------------------------------- the model


class ModelShape(Struct, frozen=True, kw_only=True):
    """What memory and time need to know of a model. Only `params` is always known."""

    id: str  # as given: hub id, folder or description
    origin: Literal["folder", "catalogue", "hub", "size", "suggested"]
    params: int
    active_params: int | None = None  # per token, for a mixture of experts
    architecture: str | None = None  # model_type of config.json
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    tied_embeddings: bool | None = None
    context_tokens: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    expert_size: int | None = None  # MLP width of one expert
    # How its layers differ (advisor/estimate/model/layouts.py): a letter for the mixer and
    # one for the MLP of each layer, empty where all are alike, and sizes that only some families
    # have.
    mixers: str = ""
    mlps: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    instruct: bool | None = None  # by its name: it follows instructions, or is a base model
    stored: str | None = None  # how a quantised checkpoint is stored: "mxfp4", "gptq"
    gated: bool | None = None  # the hub asks for access approval
    license: str | None = None
    # What switches its thoughts off, if it thinks before it answers: an argument of its chat
    # template, or "always" if none does. None: it does not think, or that is not known.
    thinks: str | None = None
    avoid_4_bit: bool = False  # those who train it advise against a base in 4 bits
    source: str = ""
    note: str = ""  # what was guessed, for a person: "size taken from the name"

    @property
    def is_mixture(self) -> bool:
        """Whether only some of its parameters are used for each token."""
        return self.active_params is not None and self.active_params < self.params

    @property
    def resolved(self) -> bool:
        """True where every dimension the estimator wants is known, not guessed from a size."""
        return None not in (self.hidden_size, self.layers, self.intermediate_size, self.vocab_size)
