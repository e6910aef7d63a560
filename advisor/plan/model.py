"""Plan: the whole launch file as a value. The same plan, seed and versions repeat the run.

The structs are the file's format too: read.py checks a file against the shapes that derive from
them. The keys of a stage are in advisor/methods/stage.py and in the files of its methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from msgspec import Struct, field

from advisor.ground.errors import Fault
from advisor.ground.shape import Choice, Flag, Integer, Located, MapOf, Number, OneOf, Path_, Text
from advisor.ground.types import DDP, FSDP
from advisor.methods.stage import Name
from advisor.methods.stage import Stage as Stage

PLAN_VERSION = 1
DATA = "train.jsonl, a folder, or a hub id"
TEMPLATE_VALUE = OneOf(options=(Flag(), Number(), Text()))
MODEL = "the hub id Qwen/Qwen3-0.6B, or a folder"


class Version(Choice):
    """The version of the format, which names the way out of another one."""

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        for _ in Choice.faults(self, value, document, path):
            hint = "it was written for another version of advise: update with pip"
            yield self.refuse(value, document, path, hint=hint)


class PlanData(Struct, frozen=True, kw_only=True):
    """The training data of a plan or of one task."""

    path: Annotated[
        str, Text(such_as=DATA), "a file or folder, relative to the plan file, or a hub id"
    ]
    format: Annotated[str | None, "what `advise check` recognised; null: recognise again"] = None
    mapping: Annotated[dict[str, str] | None, "role -> column, if the names do not say it"] = None


class VLLMServer(Struct, frozen=True, kw_only=True):
    """The server that generates answers of stages with `rollouts: vllm`."""

    url: Annotated[
        str | None,
        Text(such_as="http://127.0.0.1:8000"),
        "a server that runs already; default, without `python`: http://127.0.0.1:8000",
    ] = None
    python: Annotated[
        str | None,
        Text(such_as="/opt/vllm/bin/python"),
        "the interpreter of an environment with vLLM, relative to the plan file: `advise run`"
        " starts and ends the server",
    ] = None
    gpus: Annotated[
        int,
        Integer(min=0),
        "GPUs of a server that is started, beside those of the processes; 0: it shares theirs",
    ] = 1
    memory: Annotated[
        float, Number(above=0, max=1), "share of its GPUs' memory that a started server takes"
    ] = 0.9
    timeout_s: Annotated[float, Number(above=0), "how long an answer or a start may take"] = 600.0


class Launch(Struct, frozen=True, kw_only=True):
    """How the stages are started."""

    device: Annotated[
        Literal["cuda", "cpu", "mps", "rocm"], "what the plan was made for; another one is refused"
    ] = "cpu"
    processes: Annotated[int, Integer(min=1), "on each machine, one a GPU"] = 1
    nodes: Annotated[int, Integer(min=1), "machines; each has as many processes"] = 1
    strategy: Annotated[
        Literal["ddp", "zero2", "zero3", "fsdp"] | None,
        "how several processes share the model: ddp (each has all of it; also the default), fsdp"
        " (each has a part); zero2 and zero3 are estimated, and not started",
    ] = None
    offload: Annotated[
        bool, "with fsdp: weights, gradients and optimizer lie in the computer's memory"
    ] = False
    vllm: Annotated[
        VLLMServer | None, "the server of stages with `rollouts: vllm`, running or to be started"
    ] = None

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return self.processes * self.nodes

    @property
    def startable(self) -> bool:
        """Whether `advise run` starts it: one process, or several by torch's own means."""
        return self.strategy in (None, DDP, FSDP)


class Origin(Struct, frozen=True, kw_only=True):
    """Where the plan came from: enough to ask the same question again."""

    composition: Annotated[str | None, "what was recommended or chosen"] = None
    answers: Annotated[dict[str, Any], "what was stated"] = field(default_factory=dict)
    hardware: Annotated[str | None, "the machine it was made for"] = None
    rules: Annotated[str | None, "layers and digest of the rules that decided"] = None


class Task(Struct, frozen=True, kw_only=True):
    """One module of a plan with `tasks`: its own data on the shared base."""

    name: Annotated[Name, "names its folder in the run"]
    data: Annotated[PlanData, "its own rows"]
    overrides: Annotated[dict[str, Any], "stage keys that differ for this task"] = field(
        default_factory=dict
    )


class Plan(Struct, frozen=True, kw_only=True):
    """The whole launch file."""

    version: Annotated[int, Version(values=(PLAN_VERSION,)), "of this format"] = PLAN_VERSION
    name: Annotated[Name, "names the folder of the run"] = "finetune"
    model: Annotated[str, Text(such_as=MODEL), "hub id, or a folder relative to the plan file"]
    revision: Annotated[str | None, "branch, tag or commit of a model of the hub"] = None
    trust_remote_code: Annotated[
        bool, "run code that comes with the model; off unless you write true here"
    ] = False
    template: Annotated[
        dict[str, Any],
        MapOf(of=TEMPLATE_VALUE, named=Text(pattern=r"[A-Za-z_]\w*")),
        "arguments of the model's chat template, such as enable_thinking: false; stored in the"
        " template of the result",
    ] = field(default_factory=dict)
    data: Annotated[PlanData | None, "the rows of all stages"] = None
    tasks: Annotated[tuple[Task, ...], "one module each on a shared base, in place of `data`"] = ()
    stages: Annotated[tuple[Stage, ...], "one training after the other"]
    extras: Annotated[dict[str, Any], "keys of other optional features, by the feature's name"] = (
        field(default_factory=dict)
    )
    launch: Annotated[Launch, "how the stages are started"] = Launch()
    origin: Annotated[Origin, "where the plan came from; changes no run"] = Origin()

    def extra_key(self, name: str, key: str) -> Any:
        """A key of an optional feature; None if the plan does not have it."""
        return getattr(self.extras.get(name), key, None)

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError; read.py has checked the names."""
        return {stage.name: stage for stage in self.stages}[name]


Place = tuple[str | int, ...]  # path of a value in the plan
Comments = Mapping[Place, str]  # path of a value -> the comment written beside it
