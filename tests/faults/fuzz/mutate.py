"""Mutations: of a value (answers, plans, records), of the text that holds it, and of plain bytes.

Half of the inputs are changed gently: other numbers, texts and choices of the same kind, keys left
out or taken from another example, so that the reader takes many of them, and what lies behind it is
reached. The others are changed in every way.
"""

import copy
import datetime
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import yaml

ESCAPES = "\x1b]0;owned\x07\x1b[2J"
# Values at the edge of every type, and texts that something behind a reader may take for a command.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**18),
    0.0, -0.0, 0.5, 1e-320, 1e300, 1e308, float("inf"), float("-inf"), float("nan"),
    "", " ", "\x00", ESCAPES, "\x9b31mred", "\u202eabc", "\ufeff", "e\u0301", "\ud800", "\U0001f389",
    "ﬁ", "١٢", "a" * 70, "a" * 20_000, "../../x", "/etc/passwd", "~", ".", "..", "/", "C:\\x", "a/b:c",
    "http://127.0.0.1:9/x", "yes", "no", "null", "1e5", "0x10", "1_000", "12:30:45", "2020-01-01",
    "=", "<<", "*a", "&a", "!!python/name:os.system", "{{ 7*7 }}", "${HOME}", "%s%n", "$(touch pwned)",
    "\n", "\r\n", "a\tb", "- a", "a: b", "#", "'", '"', "qlora", "sft", "lora", "full", "nf4", "auto",
    [], {}, [[]], [None], {"": ""}, {"a": {"b": {"c": 1}}}, ["a", 1, None], [0.1] * 50,
    datetime.date(2020, 1, 1), b"\x00\xff",
)  # fmt: skip
SCALARS = [item for item in ODD if not isinstance(item, list | dict)]
TEXTS = [item for item in ODD if isinstance(item, str)]
NAMES = (
    "name", "model", "data", "stages", "version", "path", "id", "type", "value", "messages", "__class__",
)  # fmt: skip
GENTLE = 0.6
# What is done to a node; some more often.
CHANGES = (
    "replace", "replace", "replace", "near", "drop", "repeat", "rename", "splice", "splice", "wrap", "add",
)  # fmt: skip
DEPTHS = (2, 5, 30)
# Deeper nesting would be too much for the mutator itself: it is put in when the text is written.
DEEP = re.compile(r"""["']?@@deep(\d+)@@["']?""")
DEEPER = (200, 900, 5000)
ENCODINGS = ("utf-16", "utf-32", "latin-1", "utf-8-sig")


class Mutator:
    """Draws mutations from a seed."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.gentle = dice.random() < GENTLE

    # ------------------------------------------------------------------ values

    def value(self, value: Any, pool: Sequence[Any]) -> Any:
        """The value with a few of its nodes changed; `pool` holds others of its kind, for splices."""
        result = [copy.deepcopy(value)]  # so that the root has a place too
        for _ in range(self.dice.choice((1, 1, 1, 2, 2, 3, 6))):
            place = self.dice.choice(list(places_of(result)))
            self._change_gently(*place, pool) if self.gentle else self._change(*place, pool)
            result = result or [None]
        return result[0]

    def _change_gently(self, holder: Any, key: Any, pool: Sequence[Any]) -> None:
        """Change a node to one that a person might have written in its place."""
        dice, old = self.dice, holder[key]
        same = [one[other] for one, other in places_of(list(pool)) if other == key]
        match old:
            case bool():
                holder[key] = not old
            case int() | float():
                more = (type(old)(old * 2), type(old)(old * 0.5) or old, old + 1)
                holder[key] = dice.choice((*more, *(one for one in same if type(one) is type(old))))
            case str() if " " in old:
                holder[key] = dice.choice(
                    (old + "!", old.upper(), f"{old}\n{old}", f"{old} \u00e9\u2603", old[::2])
                )
            case str():
                holder[key] = dice.choice([one for one in same if isinstance(one, str)] or [old])
            case dict() if old and dice.random() < 0.5:
                del old[dice.choice(list(old))]
            case dict():
                found = next((one for one in same if isinstance(one, dict) and one), old)
                old.update(dict([dice.choice(list(copy.deepcopy(found).items()))]) if found else {})
            case list() if old:
                holder[key] = dice.choice(
                    (dice.sample(old, len(old)), old + old[:1], old[1:] or old)
                )

    def _change(self, holder: Any, key: Any, pool: Sequence[Any]) -> None:
        """Change one node, in a way that is drawn."""
        dice, old = self.dice, holder[key]
        match dice.choice(CHANGES):
            case "replace":
                holder[key] = copy.deepcopy(dice.choice(ODD))
            case "near":
                holder[key] = self.near(old)
            case "drop":
                del holder[key]
            case "repeat" if isinstance(holder, list):
                holder[key:key] = [copy.deepcopy(old)] * dice.choice((1, 2, 40, 300))
            case "repeat":
                holder.update({f"{key}{number}": copy.deepcopy(old) for number in range(40)})
            case "rename" if isinstance(holder, dict):
                holder[dice.choice((*NAMES, *SCALARS, self.text(str(key))))] = holder.pop(key)
            case "rename":
                holder[key] = {str(key): old}
            case "splice":
                holder[key] = self._part(pool)[1]
            case "wrap" if dice.random() < 0.4:
                holder[key] = f"@@deep{dice.choice(DEEPER)}@@"
            case "wrap":
                for _ in range(dice.choice(DEPTHS)):
                    holder[key] = [holder[key]] if dice.random() < 0.5 else {"a": holder[key]}
            case "add" if isinstance(old, dict):
                old.update([self._part(pool)])
            case "add":
                holder[key] = [*old, self._part(pool)[1]] if isinstance(old, list) else [old]

    def _part(self, pool: Sequence[Any]) -> tuple[Any, Any]:
        """(key, value) of any place in any value of the pool; the key of a list is a number."""
        holder, key = self.dice.choice(list(places_of([self.dice.choice(pool)])))
        return key, copy.deepcopy(holder[key])

    def near(self, old: Any) -> Any:
        """A value near to another one, of its type or of the next."""
        with suppress(OverflowError):
            match old:
                case bool():
                    return not old
                case int() | float():
                    more = (old + 1, -old, old * 10**6, old / 3, old * 1e-9, str(old), [old])
                    return self.dice.choice(more)
                case str():
                    return self.text(old)
                case list():
                    return self.dice.sample(old, len(old))
                case dict():
                    return dict(reversed(old.items()))
        return old

    def text(self, old: str) -> str:
        at, odd = self.dice.randrange(len(old) + 1), self.dice.choice(TEXTS)
        changed = (
            old[:at] + odd + old[at:], old[:at], old[at:], old * 2, old.upper(), old + "\n", odd + old,
        )  # fmt: skip
        return self.dice.choice(changed)

    # ------------------------------------------------------------------ texts and bytes

    def as_json(self, value: Any) -> bytes:
        """JSON as somebody may have written it: with NaN, lone surrogates or raw characters."""
        indent = self.dice.choice((None, 2))
        text = json.dumps(
            plain(value), indent=indent, ensure_ascii=self.dice.random() < 0.5, default=str
        )
        errors = "surrogatepass" if self.dice.random() < 0.5 else "replace"
        return deepened(text).encode("utf-8", errors)

    def as_yaml(self, value: Any) -> bytes:
        """YAML, in block or in flow style; JSON where YAML cannot hold it."""
        try:
            text = yaml.safe_dump(
                value, default_flow_style=self.dice.choice((None, True, False)),
                allow_unicode=self.dice.random() < 0.5, sort_keys=False, width=100,
            )  # fmt: skip
        except (RecursionError, yaml.YAMLError, ValueError, TypeError):
            return self.as_json(value)
        return deepened(text).encode("utf-8", "surrogatepass")

    def data(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """The bytes with a few of them changed."""
        result = bytearray(data)
        for _ in range(self.dice.choice((1, 1, 2, 3, 8))):
            self._change_bytes(result, others)
        return bytes(result)

    def _change_bytes(self, data: bytearray, others: Sequence[bytes]) -> None:
        dice = self.dice
        at = dice.randrange(len(data) + 1)
        to = min(len(data), at + dice.choice((1, 1, 2, 8, 64, 1000)))
        other = dice.choice(others) if others else b"{}"
        start, odd = dice.randrange(len(other) + 1), dice.choice(BYTES)
        changes: tuple[Callable[[], bytes], ...] = (
            lambda: data[:at] + data[to:],
            lambda: data[:at],
            lambda: data[:at] + data[at:to] * dice.choice((2, 3, 100)) + data[to:],
            lambda: data[:at] + other[start : start + 200] + data[to:],
            lambda: data[:at] + odd + data[dice.choice((at, to)) :],
            lambda: (
                data[:at] + bytes(one ^ (1 << dice.randrange(8)) for one in data[at:to]) + data[to:]
            ),
            lambda: data.replace(b"\n", dice.choice((b"\r\n", b"\r", b"", b"\n\n"))),
            lambda: data.decode("utf-8", "replace").encode(dice.choice(ENCODINGS), "replace"),
        )
        data[:] = dice.choice(changes)()


BYTES = (
    b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\x1b[31m", b"\x9b31m", b"\r",
    b"\t", b"\n", b" ", b"'", b'"', b",", b":", b": ", b"- ", b"? ", b"{", b"}", b"[", b"]", b"&a ", b"*a ",
    b"!!set ", b"!x ", b"<<: ", b"|\n", b">\n", b"---\n", b"...\n", b"%YAML 9.9\n", b"#", b"@", b"`", b"NaN",
    b"1e999", b"-", b"0x", b"\\u0000", b"\\ud800", b"\\", b"null", b"true", b"[" * 500, b"{\"a\":" * 300,
    b"\xe2\x80\xae", b"\xc2\x85", b"\xe2\x80\xa8", b"9" * 5000, b"a: &a [*a]\n", b"\x85",
)  # fmt: skip


def places_of(root: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every node below a value, without recursion: some are nested deeply."""
    left = [root]
    while left:
        holder = left.pop()
        for key in range(len(holder)) if isinstance(holder, list) else list(holder):
            yield holder, key
            if isinstance(holder[key], list | dict):
                left.append(holder[key])


def deepened(text: str) -> str:
    """The text with lists in lists where they were asked for."""
    return DEEP.sub(lambda match: "[" * int(match[1]) + "1" + "]" * int(match[1]), text)


def plain(value: Any) -> Any:
    """The value with text for keys."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
