"""How people write the name of a GPU: words without vendor and punctuation, and a size."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

# Say who sells a card or that it is one, never which.
IGNORED = frozenset(
    {
        "nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "apple", "gpu", "gpus",
        "graphics", "card", "cards", "chip", "with", "corporation", "series", "oem", "mcm", "mba",
        "chipset", "model", "r", "tm", "nvlink", "hgx", "vram",
    }
)  # fmt: skip
# A card with one of these is another card than the one without: "RTX 5070" is no RTX 5070 Ti.
TELLS_APART = frozenset(
    {
        "ti", "super", "pro", "max", "ultra", "q", "d", "xt", "xtx", "laptop", "mobile", "quadro",
        "nano", "nx", "mini", "notebook", "sff", "gre", "ai", "v2",
    }
)  # fmt: skip
# Words without a digit that say all the same which GPU is meant.
NAMED = frozenset({"orin", "thor", "titan", "strix", "halo"})
# Left out without changing which chip is meant.
FORM = frozenset(
    {
        "sxm", "sxm2", "sxm4", "sxm5", "sxm6", "pcie", "nvl", "oam", "ac", "hbm2", "hbm2e", "hbm3",
        "hbm3e", "rtx",
        "gtx", "rx", "jetson", "agx", "nvgpu", "dgx", "blackwell", "server", "workstation",
        "edition", "generation", "design", "embedded",
    }
)  # fmt: skip

_SIZE = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d+)?)[\s-]*(?:gib|gb|g)(?![a-z0-9])")
_MIG = re.compile(r"\bmig\b|\b\d+g\.(\d+)gb\b")
# A share of a GPU that a host lends to a virtual machine, by its memory: "GRID T4-16Q".
_VGPU = re.compile(r"^(?:grid|nvidia) \S.*-(\d{1,3})[qcab]$")
# What `lspci` prints: the chip, and in brackets what it is sold as.
_BRACKETS = re.compile(r"\[([^\]]*\d[^\]]*)\]")
_COMPUTER = re.compile(r"\b(?:macbook(?: (?:pro|air))?|mac (?:mini|studio|pro)|imac)\b")
# Before a name and behind it; "4090 x2" ends in its count, and "24 GB" is none.
_COUNTS = (
    re.compile(r"^\s*(-?\d{1,6})\s*[x×*]\s*(?!\d{1,2}\s*(?:[()]|$))(?=\S)(.+)$", re.IGNORECASE),
    re.compile(r"^\s*([1-9]\d?)\s+(?!g(?:i?b)?\b)(?=[a-z])(.*\d.*)$", re.IGNORECASE),
)
_COUNT_BEHIND = re.compile(
    r"^(.+?)(?:\s*[×*]|(?:\s|\(|(?<=\d))x)\s?(\d{1,6})\)?\s*(?:\([a-z ]+\))?$", re.IGNORECASE
)
_COUNT_WORDS = {
    "single": 1, "one": 1, "two": 2, "dual": 2, "three": 3, "four": 4, "quad": 4, "eight": 8,
}  # fmt: skip
_COUNT_WORD = re.compile(rf"^\s*({'|'.join(_COUNT_WORDS)})\s+(.+)$", re.IGNORECASE)
_GLUED = (
    re.compile(r"^(rtx|gtx|rx)(a?\d+)([a-z]*)$"),  # rtx4090, rtx4060ti, rtxa6000
    re.compile(r"^()(\d{3,4})((?:ti|super|xtx|xt|gre|d|laptop|mobile)+)$"),  # 4070tisuper
    re.compile(r"^()([a-z]{1,2}\d{2,3}[a-z]?)(sxm\d?|pcie|nvl)$"),  # h100sxm
    re.compile(r"^()(m\d)(pro|max|ultra)$"),  # m4max
)
_ENDINGS = re.compile(r"(?:ti|super|xtx|xt|gre|laptop|mobile)+d?")
_ENDING = re.compile(r"ti|super|xtx|xt|gre|laptop|mobile|d$")


class TypedName(Struct, frozen=True):
    """A typed name taken apart."""

    words: tuple[str, ...]  # in order, lower case, without vendor and size
    size_gib: float | None  # the size it holds; vendors write GB and mean GiB
    mig: bool  # a share of a card (MIG, vGPU), which no catalogue entry describes


def split_name(name: str) -> TypedName:
    """The words and the size of a typed name: "NVIDIA A100-80GB" -> a100, 80."""
    text = bracketed(name).lower().replace("(r)", " ").replace("(tm)", " ")
    text = _COMPUTER.sub(" ", text) if re.search(r"\bm\d", text) else text
    share = _VGPU.match(text.strip())
    if share or _MIG.search(text):
        size = share or re.search(r"\d+g\.(\d+)gb", text)
        return TypedName(words_of(text), float(size[1]) if size else None, True)
    sizes = _SIZE.findall(text)
    return TypedName(words_of(_SIZE.sub(" ", text)), float(sizes[0]) if sizes else None, False)


def bracketed(name: str) -> str:
    """What stands in the brackets of a line of `lspci`, else the name."""
    sold_as = _BRACKETS.search(name)
    return sold_as[1] if sold_as else name


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words without vendor words, glued ones split: "rtx4090" -> rtx, 4090."""
    result: list[str] = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        parts = next(
            (match.groups() for pattern in _GLUED if (match := pattern.match(word))), (word,)
        )
        for part in parts:
            ends = _ENDING.findall(part) if _ENDINGS.fullmatch(part) else [part]
            result.extend(end for end in ends if end and end not in IGNORED)
    return tuple(dict.fromkeys(result))


def catalogue_words(names: Iterable[str]) -> frozenset[str]:
    """Every word under which a card may be typed; `sxm5` answers to `sxm` too."""
    words = {word for name in names for word in words_of(_SIZE.sub(" ", name.lower()))}
    return frozenset(words | {"sxm" for word in words if word.startswith("sxm")})


def count_and_name(name: str) -> tuple[int | None, str]:
    """The count before or behind a name, if it has one: "8x H100" and "H100 x8" -> 8, "H100"."""
    for pattern in _COUNTS:
        if match := pattern.match(name):
            return int(match[1]), match[2].strip()
    if match := _COUNT_WORD.match(name):
        return _COUNT_WORDS[match[1].lower()], match[2].strip()
    if match := _COUNT_BEHIND.match(name):
        return int(match[2]), match[1].strip()
    return None, name.strip()
