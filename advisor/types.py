"""The values that travel: Hardware + Answers + DataProfile + ModelShape = Situation -> Advice -> Plan -> Run.

Frozen dataclasses, standard library only. `None` means "not known", never zero. Bytes, seconds, tokens and US dollars
inside; render/ alone converts. The Plan lives in plan/model.py, since it is also a file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Recommended keys of ../rules name these; the lists are closed because exporters, trainers and scripts build on them.
OBJECTIVES = ("cpt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "grpo", "rloo")
UPDATES = ("full", "lora", "adapter", "prefix")
QUANTIZATIONS = ("nf4", "int8")
REMEDIES = ("prompting", "rag", "tool_use", "bigger_model", "smaller_model", "constrained_decoding")

Fits = Literal["fits", "tight", "too_big", "unknown"]
WHOLE, SPLIT = "ddp", "fsdp"  # how several cards share the work: a whole model on each, which `advise run` starts, or one split over them
Verdict = Literal["recommended", "ranked_lower", "forbidden", "too_big"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a number or a statement comes from."""

    title: str
    url: str = ""
    checked: str = ""  # the date somebody read it, ISO
    kind: str = ""  # measured | paper | vendor | derived | assumed | document


# --------------------------------------------------------------------------- the machine


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSpec:
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
    price_usd_per_h: float | None  # on demand, the lowest that is not a marketplace, else the lowest
    price_note: str = ""  # provider and date of that price


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device the process may use."""

    name: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None = None  # None for a card that was named, not probed
    other_processes_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    bf16: bool | None = None
    uuid: str | None = None
    index: int | None = None  # NVML's index; never use it to find the card in torch
    mig_profile: str | None = None
    spec: GpuSpec | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Facts of one machine, probed or stated."""

    # cuda | rocm | mps | cpu (no device found, or `gpu: none`) | unknown (hardware rules nothing out)
    kind: str
    origin: Literal["probed", "stated", "unknown"]
    gpus: tuple[Gpu, ...] = ()
    cpu_cores: int | None = None  # that this process may use (affinity)
    cpu_bf16: bool | None = None  # whether the processor multiplies bfloat16 by itself; None where it does not say
    ram_total_bytes: int | None = None  # cgroup limit where there is one
    ram_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    driver_version: str | None = None
    cuda_version: str | None = None  # the newest CUDA the driver supports
    interconnect: str | None = None
    software: Mapping[str, str | None] = field(default_factory=dict)  # package -> installed version, None if absent
    notes: tuple[str, ...] = ()  # facts worth showing: "driver present, no device", "memory not reported"
    torch_target: str | None = None  # what the installed PyTorch was built for: "CPU", "CUDA 12.8", "ROCm 6.4"
    problem: str | None = None  # why the installed PyTorch cannot use the probed card, with the line to install

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory a run on one device may plan with: the smallest card's free memory, else its total; RAM on the CPU."""
        if self.kind == "unknown":
            return None
        if not self.gpus:
            return self.ram_free_bytes or self.ram_total_bytes
        sizes = [gpu.memory_free_bytes or gpu.memory_total_bytes for gpu in self.gpus]
        return None if any(size is None for size in sizes) else min(size for size in sizes if size is not None)


# --------------------------------------------------------------------------- what the person says


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer and where it came from. Rank of origins: default < file < flag < asked."""

    value: Any
    origin: Literal["default", "file", "flag", "asked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Fact id -> answer, for the facts of rules/facts.yaml whose origin is `asked`. A fact not in it was not stated."""

    known: Mapping[str, Answer] = field(default_factory=dict)

    def value(self, fact: str, default: Any = None) -> Any:
        answer = self.known.get(fact)
        return default if answer is None else answer.value

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that were stated as true."""
        return tuple(self.value("signals", ()))


# --------------------------------------------------------------------------- the data


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about the data that a person should know."""

    id: str  # kebab-case, named after the situation: "row-without-answer"
    severity: Literal["error", "warning", "note"]
    text: str
    count: int = 0
    rows: tuple[int, ...] = ()  # 1-based; the first few
    blocks: tuple[str, ...] = ()  # objectives it makes impossible


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStats:
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
    request_mean: float | None = None  # of what stands before the answer; None where rows have no parts


@dataclass(frozen=True, kw_only=True, slots=True)
class DataProfile:
    """What a data file is, measured without torch."""

    path: str
    kind: str  # paired | raw_text | preference | unpaired_feedback | prompts_with_verifier
    format: str  # messages sharegpt alpaca prompt_completion question_answer classification text preference ...
    mapping: Mapping[str, str]  # role -> column, as understood
    rows: int
    tokens: TokenStats | None
    objectives: tuple[str, ...]  # it can train
    findings: tuple[Finding, ...] = ()
    sample: Mapping[str, Any] | None = None  # one row as understood
    digest: str = ""  # of the content
    confidence: str = ""  # certain | likely | stated (by a mapping): how sure the format is
    why: str = ""  # what the format was recognised by
    other_ways: tuple[str, ...] = ()  # options that would read it otherwise: '--map question=a answer=b'
    measures: Mapping[str, Any] = field(default_factory=dict)  # JSON types: turns, scripts, classes, lengths of requests and answers, ...


# --------------------------------------------------------------------------- the model


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
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
    lookup_params: int = 0  # embeddings of each layer beside the first: looked up, never multiplied, never quantised
    instruct: bool | None = None  # its name says that it follows instructions (True) or is a base model (False)
    gated: bool | None = None  # the hub asks for access approval
    license: str | None = None
    source: str = ""
    note: str = ""  # what was guessed, for a person: "size taken from the name"

    @property
    def resolved(self) -> bool:
        """True where every dimension the estimator wants is known, not guessed from a size."""
        return None not in (self.hidden_size, self.layers, self.intermediate_size, self.vocab_size)


# --------------------------------------------------------------------------- what is estimated


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """The settings one estimate is about. A field left None takes what the bundled trainers would use."""

    objective: str = "sft"
    update: str = "lora"
    quantization: str | None = None
    double_quantization: bool = True
    kbit_prepared: bool | None = None
    weights_dtype: str = "bfloat16"
    precision: str | None = None  # pure | mixed
    fp32_master_weights: bool = False
    optimizer: str | None = None
    optimizer_in_backward: bool = False
    rank: int | None = None
    target_modules: str | tuple[str, ...] = "all-linear"
    micro_batch_size: int = 1
    seq_len: int = 1024
    grad_accum: int = 1
    packing: bool = False
    gradient_checkpointing: bool | str = True
    attention: str = "sdpa"
    loss: str | None = None  # full | fused | chunked
    gpus: int = 1
    sharding: str | None = None  # None ddp zero2 zero3 fsdp
    offload_weights: bool = False  # fsdp and zero3: weights, gradients and optimizer live in host memory
    compile: bool = False
    framework: str | None = None
    counter: str = "allocated"
    options: Mapping[str, Any] = field(default_factory=dict)  # keys of the update or objective: bottleneck, prefix_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One line of a memory estimate."""

    name: str
    size_bytes: int
    because: str
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A moment of a run (forward and backward, optimizer step, evaluation) as a sum of the lines shown."""

    name: str
    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        return sum(term.size_bytes for term in self.terms)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Peak memory of one device: its highest moment, so total and explanation cannot disagree."""

    moments: tuple[Moment, ...]
    low_bytes: int  # the band that measured runs of this kind fell into
    high_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def peak_bytes(self) -> int:
        return self.peak.total_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeEstimate:
    """Duration of one optimizer step and of the whole run."""

    step_s: float
    steps: int | None
    tokens_per_s_per_gpu: float
    because: str
    warnings: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float | None:
        return None if self.steps is None else self.step_s * self.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What one candidate costs. A part is None where it cannot be known; `unknown` says why."""

    fits: Fits
    memory: MemoryEstimate | None = None
    limit_bytes: int | None = None  # what the device has for it
    duration_s: float | None = None
    cost_usd: float | None = None
    cost_note: str = ""  # "RTX 4090 at $0.34/h (vast, 2026-08)"
    unknown: tuple[str, ...] = ()


# --------------------------------------------------------------------------- compositions and advice


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """A whole answer: remedies that train nothing, and at most one training chain.

    Written `sft>rm>ppo+lora`, `cpt>sft+full`, `sft+qlora@per_task`, `rag & sft+lora`, `encoder:sft+full` or a remedy
    alone. `qlora` is read and written; inside it is update `lora` on quantization `nf4`.
    """

    chain: tuple[str, ...] = ()
    update: str | None = None
    quantization: str | None = None
    per_task: bool = False
    encoder: bool = False
    remedies: tuple[str, ...] = ()

    @property
    def scheme(self) -> str | None:
        """The everyday spelling of update and quantization: full, lora, qlora, adapter, prefix."""
        if self.update == "lora" and self.quantization is not None:
            return "qlora"
        return self.update

    @property
    def training(self) -> str:
        """The training part alone, or an empty string: 'sft+qlora@per_task'."""
        if not self.chain:
            return ""
        base = f"{'encoder:' if self.encoder else ''}{'>'.join(self.chain)}+{self.scheme}"
        return base + ("@per_task" if self.per_task else "")

    def __str__(self) -> str:
        return " & ".join([*self.remedies, *([self.training] if self.training else [])])


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFact:
    """One fact that a rule saw: its value and where it came from."""

    fact: str
    value: Any
    origin: str  # "flag", "read from train.jsonl", "estimated", "concluded by document/scenario-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One sentence of an explanation, with the rule that says it and, for a limit, the two numbers."""

    text: str
    rule: str | None = None
    source: str | None = None
    facts: tuple[KnownFact, ...] = ()  # what the rule saw, and where each fact came from
    needs: float | None = None
    has: float | None = None
    unit: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A setting's value with the reason it was chosen."""

    value: Any
    because: str
    rule: str | None = None  # None: computed by the fit search or taken from the user


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """One stage of a candidate with every setting the plan will hold. Keys are the plan's keys."""

    objective: str
    update: str
    quantization: str | None
    settings: Mapping[str, Chosen]

    @property
    def split(self) -> bool:
        """Whether the model is split over several cards, which `advise run` does not start."""
        return "sharding" in self.settings and self.settings["sharding"].value != WHOLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One composition with its stages, its estimate and what the rules say of it."""

    composition: Composition
    stages: tuple[StageSettings, ...]
    estimate: Estimate
    verdict: Verdict
    because: tuple[Reason, ...]
    forced_ok: bool = True  # --force may take it (never over a company's forbid, nor what cannot run)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuideAnswer:
    """What the guide alone says, and in which row."""

    composition: Composition
    row: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """A change of one fact that would change the answer."""

    change: Mapping[str, Any]
    to: Composition
    effort: str  # answer | data | money | fixed
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayOut:
    """One way to make something fit where nothing does: what to change, what then fits, and the line to type."""

    text: str
    change: Mapping[str, Any]
    to: Composition
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NothingFits:
    """Why nothing fits: the nearest candidate, the smallest set of facts to blame, and ways out."""

    nearest: Candidate
    blame: tuple[Reason, ...]  # without any one of these facts something would fit
    ways_out: tuple[WayOut, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSuggestion:
    """A model nobody asked for: what is suggested, and why."""

    model: str
    because: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """Everything advice depends on."""

    answers: Answers
    hardware: Hardware
    data: DataProfile | None = None
    examples: DataProfile | None = None  # of requests and answers, beside a corpus
    reward_model: str | None = None  # the folder of one that is there already
    tasks: Mapping[str, DataProfile] = field(default_factory=dict)
    shortages: Mapping[str, str] = field(default_factory=dict)  # objective -> what is said of too few data for it
    model: ModelShape | None = None
    suggestion: ModelSuggestion | None = None
    instead: ModelSuggestion | None = None  # of a named model that is of another kind than most tasks need
    encoder: tuple[ModelShape, ModelSuggestion] | None = None  # what would be suggested where a small encoder is enough
    smaller: tuple[tuple[ModelShape, ModelSuggestion], ...] = ()  # models that could take the place of this one, largest first
    cards: tuple[GpuSpec, ...] = ()  # that one could rent, cheapest first, for "what would fit"
    warnings: tuple[str, ...] = ()  # found while reading answers, data, hardware or model
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The answer: the recommendation, every other candidate with its verdict, what is unknown, what would change it."""

    situation: Situation
    facts: Mapping[str, Any]  # what the rules saw
    recommendation: Candidate
    decided_by: tuple[str, ...]
    guide: GuideAnswer | None
    alternatives: tuple[Candidate, ...]
    flips: tuple[Flip, ...]
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]
    confidence: str
    layers: tuple[str, ...]
    rules_digest: str
    nothing_fits: NothingFits | None = None
    # id of a guide method (rules/document/methods.yaml) -> its row: stars, data requirement, ideal use case, pros, cons
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """False where training is wanted and nothing fits the hardware and the budget (exit code 3)."""
        return self.nothing_fits is None
