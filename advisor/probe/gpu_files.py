"""The files of rules/hardware/ and rules/prices/ as values; their faults come in one error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import filter as fnfilter
from functools import cache, cached_property
from typing import Any, cast

from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Date, Flag, Keys, ListOf, MapOf, Number, Text
from advisor.ground.types import GpuLink, GpuSpec, NotSupported, Source
from advisor.ground.yaml_files import LINK, Document, read_derived, read_shipped
from advisor.probe.gpu_facts import FOLDERS, FORMATS, RELEASE
from advisor.probe.names import split_name

_LINK = Text(pattern=LINK, such_as="https://docs.pytorch.org/...")
_TOOL = Keys(keys={"title": Text(), "url": _LINK}, required=("title", "url"))
_DEVICE = Keys(
    keys={
        "names": ListOf(of=Text(), least=1, help="words that tell it, * as in file names"),
        "not_with": ListOf(of=Text(), help="words that make it something else"),
        "what": Text(help="what it is, after 'is'"),
        "why": Text(help="why this tool does not train on it, after its name"),
        "where": ListOf(of=_TOOL, least=1, help="tools that train on it"),
        "checked": Date(help="the day somebody read those pages"),
    },
    required=("names", "what", "why", "where", "checked"),
)
NOT_SUPPORTED_FILE = Keys(
    help="Devices that this tool cannot train on",
    keys={"version": VERSION, "review_by": Date(), "devices": MapOf(of=_DEVICE)},
    required=("version", "devices"),
)


def not_supported(name: str) -> NotSupported | None:
    """The device a typed name means, if it is one that this tool cannot train on."""
    typed = split_name(name).words
    if not typed:
        return None

    def holds(names: Iterable[str]) -> bool:
        """Whether each word of one of the names is among the typed ones."""
        return any(all(fnfilter(typed, part) for part in name.split()) for name in names)

    for device_id, entry in not_supported_devices().items():
        if holds(entry["names"]) and not holds(entry.get("not_with", ())):
            tools = tuple(Source(**tool, checked=entry["checked"]) for tool in entry["where"])
            return NotSupported(id=device_id, what=entry["what"], why=entry["why"], where=tools)
    return None


@cache
def not_supported_devices() -> Mapping[str, Mapping[str, Any]]:
    """The entries of the file. Raises InputError, located."""
    path = rules_dir() / "hardware" / "not-supported.yaml"
    data: Mapping[str, Any] = read_shipped(path, shape=NOT_SUPPORTED_FILE).data
    return cast(Mapping[str, Mapping[str, Any]], data["devices"])


# --------------------------------------------------------------------------- what files may hold


_WHEEL = Keys(
    keys=dict.fromkeys(("cuda", "from", "to", "torch_below"), RELEASE),
    required=("cuda", "from", "to"),
)
_TORCH_RELEASE = Keys(
    keys={
        **dict.fromkeys(("releases_from", "releases_below", "from", "to"), RELEASE),
        "requirement": Text(),
    },
    required=("releases_from", "requirement", "from", "to"),
)
_KERNEL = Keys(
    help="What a kernel needs",
    keys={
        **dict.fromkeys(("from", "to"), RELEASE),
        "widest_head": Number(whole=True, min=1),
        **dict.fromkeys(("module", "package", "hub"), Text()),
        **dict.fromkeys(("half_only", "triton", "rocm", "cuda"), Flag()),
    },
)
CUDA_FILE = Keys(
    help="What joins a GPU, its driver and PyTorch",
    keys={
        "version": VERSION,
        "checked": Date(),
        "formats_from_capability": Keys(keys=dict.fromkeys(FORMATS, RELEASE)),
        "driver_from": MapOf(of=Number(whole=True, min=1)),
        "driver_source": Text(),
        "wheels": ListOf(of=_WHEEL),
        "wheels_source": Text(),
        "pip_torch": MapOf(of=_TORCH_RELEASE, named=Text(pattern=r"\d+", such_as='"13"')),
        "kernels": MapOf(of=_KERNEL),
        "kernels_sources": ListOf(of=Text()),
        "kept_free": Keys(
            keys={
                "gib": Number(above=0),
                "laptop_words": ListOf(of=Text()),
                "ram_gib": Number(above=0),
                "ram_share": Number(above=0, max=1),
                "macos_share": Number(above=0, max=1),
                "macos_small_share": Number(above=0, max=1),
                "macos_small_gib": Number(above=0, help="a computer with more has the other share"),
                "macos_sources": ListOf(of=Text()),
                "because": Text(),
            },
            required=(
                "gib", "laptop_words", "ram_gib", "ram_share", "macos_share", "macos_small_share",
                "macos_small_gib", "because",
            ),
        ),
    },
    required=("version", "driver_from", "wheels", "pip_torch", "kernels", "kept_free"),
)  # fmt: skip


# --------------------------------------------------------------------------- reading


class CatalogueGpu:
    """One entry of rules/hardware/ with its price; its spec is made when it is asked for."""

    def __init__(self, gpu_id: str, row: Mapping[str, Any]) -> None:
        self.id, self.row = gpu_id, row
        self.name: str = row["name"]
        self.names: tuple[str, ...] = tuple(row["names"])  # exactly as a driver or vendor writes it
        self.words = frozenset(row["words"])  # of its id and of all its names
        self.own_words = frozenset(row["own_words"])  # of its short name
        self.other_words = tuple(map(frozenset, row["other_words"]))  # of each other name
        self.sold_gib: tuple[float, ...] = tuple(row["sold_gib"])  # its own size comes first
        self.modified_gib: tuple[float, ...] = tuple(row["modified_gib"])  # that workshops make
        self.usual_gib: float | None = row["usual_gib"]  # meant where no size is stated
        self.price_usd_per_h: float | None = row["price"][0]

    @cached_property
    def spec(self) -> GpuSpec:
        price, note, most = self.row["price"]
        cc = self.row["compute_capability"]
        return GpuSpec(
            id=self.id,
            name=self.name,
            compute_capability=(cc[0], cc[1]) if cc else None,
            price_usd_per_h=price,
            price_note=note,
            rented_most=most,
            link=GpuLink(**self.row["link"]),
            **self.row["spec"],
        )

    @cached_property
    def entry(self) -> Mapping[str, Any]:
        """What its file says of it, as it is written there."""
        return dict(_file(self.row["file"]).data["gpus"][self.id])


@cache
def catalogue_gpus() -> Mapping[str, CatalogueGpu]:
    """GPU id -> its entry, in file order. Raises InputError with the faults of all files."""
    paths = [path for name in FOLDERS for path in sorted((rules_dir() / name).glob("*.yaml"))]
    _file.cache_clear()
    rows: Mapping[str, Mapping[str, Any]] = read_derived("gpus", paths, _read)
    return {gpu_id: CatalogueGpu(gpu_id, row) for gpu_id, row in rows.items()}


def _read() -> dict[str, dict[str, Any]]:
    from advisor.probe.gpu_rows import rows  # what they hold is kept

    return rows(rules_dir())


@cache
def _file(name: str) -> Document:
    return read_shipped(rules_dir() / "hardware" / name)


@cache
def cuda_facts() -> Mapping[str, Any]:
    """The facts of rules/hardware/cuda.yaml: drivers, wheels, number formats. Raises InputError."""
    return dict(read_shipped(rules_dir() / "hardware" / "cuda.yaml", shape=CUDA_FILE).data)
