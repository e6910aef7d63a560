"""Which encoding a file is in that is not UTF-8: the one in which its letters make sense.

A byte order mark says UTF-16. Else every encoding in use is tried, and the letters it gives are
compared with the alphabets that are written in it: Polish read as Western European gives ¹ and ³
inside words, which no language has. Where no encoding makes sense of the letters, or two do, none
is taken: wrong letters in training data are worse than an error.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

LOOKED_AT_LINES = 2000  # with bytes above 127, of the whole file
LOOKED_AT_BYTES = 256 << 10
LEAST_SENSE = 0.8  # of the letters beyond ASCII have to belong to one alphabet
CLEAR_MARGIN = 0.05  # by which the best encoding has to be better than the next

WESTERN, CENTRAL, CYRILLIC, GREEK, TURKISH, HEBREW, ARABIC, MAC = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "mac_roman",
)  # fmt: skip
NAMES = {
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32": "UTF-32",
    WESTERN: "Windows-1252",
    CENTRAL: "Windows-1250",
    CYRILLIC: "Windows-1251",
    "koi8-r": "KOI8-R",
    GREEK: "Windows-1253",
    TURKISH: "Windows-1254",
    HEBREW: "Windows-1255",
    ARABIC: "Windows-1256",
    MAC: "Mac Roman",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "gb18030": "GB18030",
    "cp949": "CP949 (Korean)",
    "big5": "Big5",
}
# The letters of each alphabet beyond ASCII, in small letters.
LATIN_WEST = (
    "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "ãáàâçéêíóôõú", "àèéìíîòóùú", "æøåéó", "åäöé", "ëïéèóöü",
    "áðéíóúýþæö", "àçèéíïòóúü",
)  # fmt: skip
ALPHABETS: dict[str, tuple[str, ...]] = {
    WESTERN: LATIN_WEST,
    MAC: LATIN_WEST,
    CENTRAL: (
        "ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž",
    ),
    TURKISH: ("âçğıîöşü",),
}  # fmt: skip
# Of other scripts every byte is a letter, so that an alphabet tells nothing: the letters that no
# text does without tell, and how many of all letters they are at least.
JAPANESE = ("のにはをたがでてとしれさいるあなうすまこ", 0.15)
RUSSIAN = ("оеаинтсрвлоіеа", 0.5)
FREQUENT: dict[str, tuple[str, float]] = {
    CYRILLIC: RUSSIAN,
    "koi8-r": RUSSIAN,
    GREEK: ("αάοόιίεέτσνηήυρς", 0.5),
    HEBREW: ("יוהלאמרתבש", 0.5),
    ARABIC: ("اليمنتروبعهة", 0.5),
    "cp932": JAPANESE,
    "euc_jp": JAPANESE,
    "gb18030": ("的一是不了在有我他这个们中来上大为和国地到以说时要就出会可也你对生能", 0.1),
    "big5": ("的一是不了在有我他這個們中來上大為和國地到以說時要就出會可也你對生能", 0.1),
    "cp949": ("이다는을에의가를하고은로도한지기어서해니요습", 0.15),
}
WIDE = ("cp932", "euc_jp", "gb18030", "big5", "cp949")  # two bytes and more for a character
SCRIPTS = {  # first and last letter of the script an encoding is for
    CYRILLIC: (0x0400, 0x04FF),
    "koi8-r": (0x0400, 0x04FF),
    GREEK: (0x0370, 0x03FF),
    HEBREW: (0x0590, 0x05FF),
    ARABIC: (0x0600, 0x06FF),
}
# Stand beside words in every language, and tell nothing.
MARKS = frozenset("“”„‘’‚«»‹›–—…•·§°©®™€£¥¿¡№ªº²³½¼¾×±´¨\u00a0\u00ad、。「」（）：？！，；")


@dataclass(frozen=True, slots=True)
class Sense:
    """How well an encoding explains the bytes of a file."""

    encoding: str
    share: float  # of the letters beyond ASCII, that belong to the alphabet it suits best

    @property
    def name(self) -> str:
        return NAMES[self.encoding]


def from_first_bytes(head: bytes) -> str | None:
    """The encoding that a byte order mark tells, or zeros beside every ASCII letter; else None."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0::2], head[1::2]
    # Without a mark: ASCII text has a zero in every second place, and text of other scripts still
    # at its spaces and line ends.
    if odd and odd.count(0) >= max(2, 0.3 * len(odd)) and not even.count(0):
        return "utf-16-le"
    if even and even.count(0) >= max(2, 0.3 * len(even)) and not odd.count(0):
        return "utf-16-be"
    return None


def guess_encoding(lines: Iterable[bytes]) -> tuple[Sense | None, list[Sense]]:
    """The encoding of lines that are not UTF-8, or None; and every encoding that was considered,
    best first.

    Args:
        lines: Those with bytes above 127; the first of them decide.
    """
    kept: list[bytes] = []
    size = 0
    for line in lines:
        kept.append(line.rstrip(b"\r\n"))
        size += len(line)
        if len(kept) >= LOOKED_AT_LINES or size >= LOOKED_AT_BYTES:
            break
    found = sorted(
        (sense for name in (*ALPHABETS, *FREQUENT) if (sense := sense_of(kept, name))),
        key=lambda sense: -sense.share,
    )
    if not found or found[0].share < LEAST_SENSE:
        return None, found
    best = [sense for sense in found if sense.share > found[0].share - CLEAR_MARGIN]
    # German is written alike in the Western, the Central European and the Turkish encoding: where
    # the letters read are the same, the most common name serves.
    texts = {_decoded(kept, sense.encoding) for sense in best}
    western = next((sense for sense in best if sense.encoding == WESTERN), None)
    if len(texts) == 1 or western is not None:
        return western or best[0], found
    return (best[0] if len(best) == 1 else None), found


def _decoded(lines: Iterable[bytes], encoding: str) -> str:
    return "\n".join(line.decode(encoding, errors="replace") for line in lines)


def sense_of(lines: Iterable[bytes], encoding: str) -> Sense | None:
    """How well an encoding explains the lines; None where nothing tells."""
    text = _decoded(lines, encoding)
    strange = [char for char in text if ord(char) > 127 and char not in MARKS]
    if not strange:
        # Nothing but quotes, dashes and the like: what office programs write in Windows-1252.
        return Sense(encoding, 1.0) if encoding == WESTERN and not text.isascii() else None
    if encoding in FREQUENT:
        frequent, least = FREQUENT[encoding]
        first, last = SCRIPTS.get(encoding, (0x1100, 0xFFDC))
        own = sum(first <= ord(char) <= last for char in strange) / len(strange)
        share = sum(char.lower() in frequent for char in strange) / len(strange)
        wrong = max(_inside_latin_words(text), _capitals_inside_words(text))
        return Sense(encoding, own * min(1.0, share / least) * (1 - wrong))
    small = [char.lower() for char in strange]
    best = max(sum(char in alphabet for char in small) for alphabet in ALPHABETS[encoding])
    return Sense(encoding, best / len(small))


def _inside_latin_words(text: str) -> float:
    """The share of letters beyond ASCII that stand beside one of ASCII: few in other scripts."""
    strange = beside = 0
    for before, char, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        if ord(char) > 127 and char not in MARKS:
            strange += 1
            beside += (before.isascii() and before.isalpha()) or (
                after.isascii() and after.isalpha()
            )
    return beside / max(1, strange)


def _capitals_inside_words(text: str) -> float:
    """The share of letters after another one that are capitals: Cyrillic has them where it is read
    in the other of its encodings.
    """
    inside = [
        second.isupper()
        for first, second in pairwise(text)
        if ord(first) > 127 and first.isalpha() and second.isalpha()
    ]
    return sum(inside) / max(1, len(inside))
