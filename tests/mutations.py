"""Does the gate hold what it should? python -m tests.mutations [--seed 1] [--count 30] [--only 3 7] [--night] [--list]

Changes the product in one place at a time and asks the gate whether it sees it: first the tests of the
changed room, then, for what they leave, the default suite, the smoke tests, mypy and the generated
files; with --night what only the night runs. A place is drawn from the code as it stands: first a
kind, then a file by its size. Prints a table in Markdown. The files are put back, also at Ctrl-C;
nothing else may be changed meanwhile.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("advisor", "trainers", "rules")
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
NO_TESTS = 5  # pytest's exit code where nothing was collected
MOST = 40  # failed tests, of a file each, that every change is tried on alone
LIMIT_S = 3600.0  # of one command: a test that no longer ends has seen the change
SIGNS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
ESCAPES = re.compile(r"escape|quote|clean|safe", re.I)
# A number in a file of rules, and none in a date, an address or a text.
NUMBER = re.compile(
    rb"(?m)^(?![^\n]*(?:date|checked|url|version))[^\n#'\"]*?[:,{\[]\s+(\d+(?:\.\d+)?)(?=\s*[,}\]\n])"
)


class Mutation(NamedTuple):
    """One change of one file: the bytes from `start` to `end` become `text`."""

    path: Path
    start: int
    end: int
    text: str
    kind: str

    def words(self) -> str:
        """'advisor/x.py:12 | comparison turned | `<` becomes `<=`'."""
        source = self.path.read_bytes()
        line = source.count(b"\n", 0, self.start) + 1
        old, new = (
            " ".join(text.split())[:40]
            for text in (source[self.start : self.end].decode(), self.text)
        )
        return f"{self.path.relative_to(ROOT)}:{line} | {self.kind} | `{old}` becomes `{new}`"


def of_python(path: Path) -> Iterator[Mutation]:
    """Every change that this file of code allows."""
    source, starts = path.read_bytes(), [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        first, last = starts[node.lineno - 1], starts[node.end_lineno - 1]
        return first + node.col_offset, last + node.end_col_offset

    def text(node: ast.AST) -> str:
        start, end = span(node)
        return source[start:end].decode()

    tree = ast.parse(source)
    hints = {
        id(inner)
        for node in ast.walk(tree)
        for name in ("annotation", "returns")
        if (hint := getattr(node, name, None)) is not None
        for inner in ast.walk(hint)
    }
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        match node:
            case ast.Compare(left=left, ops=[sign], comparators=[right]):
                start, end = span(left)[1], span(right)[0]
                old, new = SIGNS[type(sign)]
                if source[start:end].decode().strip() == old:
                    yield Mutation(path, start, end, f" {new} ", "comparison turned")
            case ast.BinOp(left=left, op=ast.Add() | ast.Mult(), right=right):
                if not (is_text(left) or is_text(right)):
                    yield Mutation(path, *span(node), text(left), "term left out")
            case ast.BoolOp(values=values):
                yield Mutation(path, *span(node), text(values[0]), "part of a condition left out")
            case ast.Constant(value=bool(value)):
                yield Mutation(path, *span(node), str(not value), "yes and no exchanged")
            case ast.Constant(value=int() | float() as value):
                yield Mutation(path, *span(node), repr(value + 1), "number changed")
            case ast.If(test=test) | ast.IfExp(test=test):
                yield Mutation(path, *span(test), f"not ({text(test)})", "condition turned")
            case ast.Expr(value=ast.Call() as call):
                yield Mutation(path, *span(call), "None", "call left out")
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[one], keywords=[]
            ) if ESCAPES.search(name):
                yield Mutation(path, *span(node), f"({text(one)})", "escape left out")


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def of_rules(path: Path) -> Iterator[Mutation]:
    """Each number of a file of rules, one larger."""
    for found in NUMBER.finditer(path.read_bytes()):
        old = found[1].decode()
        new = str(float(old) + 1) if "." in old else str(int(old) + 1)
        yield Mutation(path, *found.span(1), new, "value of a rule changed")


def drawn(seed: int, count: int) -> list[Mutation]:
    """As many changes of each kind: a file by its size, then a place."""
    by_kind: dict[str, dict[Path, list[Mutation]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(path for room in PRODUCT for path in (ROOT / room).rglob("*")):
        changes = {".py": of_python, ".yaml": of_rules}.get(path.suffix)
        for one in changes(path) if changes else ():
            by_kind[one.kind][path].append(one)
    rng, found = random.Random(seed), list[Mutation]()
    for number in range(count):
        files = by_kind[sorted(by_kind)[number % len(by_kind)]]
        path = rng.choices(list(files), [len(ones) for ones in files.values()])[0]
        found.append(rng.choice(files[path]))
    return found


def near(one: Mutation) -> list[str]:
    """The tests of the changed room."""
    room = one.path.relative_to(ROOT).parts[1 if one.path.is_relative_to(ROOT / "advisor") else 0]
    folders = {"rules": ["tests/ruleset", "tests/advice"]}.get(room, [f"tests/{room}"])
    return [folder for folder in folders if (ROOT / folder).is_dir()]


def gate(*, night: bool) -> Iterator[list[str]]:
    """The commands that may see a change."""
    if night:
        yield [*PYTEST, "-m", "slow"]
        yield [*PYTEST, "-n0", "-m", "long"]
        yield [sys.executable, "-m", "tests.faults"]
        yield [sys.executable, "-m", "tests.distributed"]
        return
    yield [*PYTEST, "tests"]
    yield [*PYTEST, "-m", "smoke", "tests"]
    yield [sys.executable, "-m", "mypy"]
    yield [sys.executable, "-m", "tools.generate", "--check"]


@contextmanager
def applied(changes: Sequence[Mutation]) -> Iterator[None]:
    """The product with these changes, none of which overlap."""
    before = {one.path: one.path.read_bytes() for one in changes}
    try:
        for one in sorted(changes, key=lambda one: -one.start):  # the last place first
            now = one.path.read_bytes()
            one.path.write_bytes(now[: one.start] + one.text.encode() + now[one.end :])
        yield
    finally:
        for path, source in before.items():
            path.write_bytes(source)


def failing(command: Sequence[str]) -> list[str]:
    """The tests that a command names as failed, or the command; empty if all is well."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ["a test that does not end"]
    if not done.returncode or done.returncode == NO_TESTS:
        return []
    return re.findall(r"(?m)^(?:FAILED|ERROR) ([^ \n\[]+)", done.stdout) or [" ".join(command[2:])]


def seen_together(changes: dict[int, Mutation], *, night: bool) -> dict[int, str]:
    """Number -> what sees it. Where a command passes with all of them, it sees none of them alone;
    where it fails, each is tried alone on the tests that failed, until it passes with the rest.
    """
    seen: dict[int, str] = {}
    for command in gate(night=night):
        while left := {number: one for number, one in changes.items() if number not in seen}:
            with applied([*left.values()]):
                failed = failing(command)
            tests = [*{test.split("::")[0]: test for test in failed if "::" in test}.values()][
                :MOST
            ]
            alone = [*PYTEST, "-x", *tests] if tests else command
            if failed and failing(alone):  # without any change: no witness
                failed = tests = [test for test in tests if not failing([*PYTEST, test])]
                alone = [*PYTEST, "-x", *tests]
            found = dict[int, str]()
            for number, one in left.items() if failed else ():
                with applied([one]):
                    if by := failing(alone):
                        found[number] = by[0]
            if not found:
                break
            seen |= found
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the list")
    parser.add_argument("--night", action="store_true", help="ask slow and long tests instead")
    parser.add_argument("--list", action="store_true", help="say what would be changed")
    args = parser.parse_args()
    drawn_ones = enumerate(drawn(args.seed, args.count), 1)
    ones = {number: one for number, one in drawn_ones if not args.only or number in args.only}
    words, seen = {number: one.words() for number, one in ones.items()}, dict[int, str]()
    for number, one in ones.items() if not (args.list or args.night) else ():
        with applied([one]):
            if by := failing([*PYTEST, "-x", *near(one)]) if near(one) else []:
                seen[number] = by[0]
        print(number, seen.get(number, "not seen by the tests of its room"), file=sys.stderr)
    if not args.list:
        rest = {number: one for number, one in ones.items() if number not in seen}
        seen |= seen_together(rest, night=args.night)
    print("| # | place | kind | change | seen by |\n| --- | --- | --- | --- | --- |")
    for number in ones:
        print(f"| {number} | {words[number]} | {seen.get(number, '**nothing**')} |")
    print(f"\n{len(seen)} of {len(ones)} seen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
