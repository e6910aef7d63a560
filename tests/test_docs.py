"""The pages agree with the project: links lead somewhere, flags and commands exist, the rooms are
those that the layer test keeps.
"""

import re
from pathlib import Path

import click
import pytest

from advisor.cli import COMMANDS, advise
from tests.test_layers import ORDER

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "rules/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FAULTS = (ROOT / "tests" / "faults" / "__main__.py").read_text("utf-8")
OTHER_TOOLS = {  # of pytest, of the benchmark for GPUs, of the long form of the faults, of vLLM
    *("--pdb", "--device"),
    "--max-loras",  # of vLLM
    *re.findall(r'add_argument\(\s*"(--[a-z-]+)"', FAULTS),
}
GONE = {"CHANGELOG.md"}  # names what no longer exists

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(page):
    """What a link may name behind #: the headings, as forges spell them, and explicit ids."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@by_name
def test_links_lead_somewhere(page):
    """Every relative link names a file of the project, and a heading of it if it names one."""
    wrong = []
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_each_promise_of_security_names_a_test_that_is_there():
    """The table of SECURITY.md says what shows each of its lines."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", text))
    assert len(named) > 6
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def options():
    """Command, '' for `advise` itself -> its options."""
    with advise.make_context("advise", ["--help"], resilient_parsing=True) as context:
        commands = {name: advise.get_command(context, name) for name in COMMANDS}
    commands[""] = advise
    return {
        name: {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        | {"--help"}
        for name, command in commands.items()
    }


def commands_of(page):
    """Every call of `advise`, and every flag that stands alone, in code of the page."""
    text = page.read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    lines += SPAN.findall(BLOCK.sub("", text))
    for line in lines:
        line = line.strip().removeprefix("$ ").partition("  #")[0]
        if re.match(r"(advise\b|--[a-z])", line):
            yield line


@by_name
def test_commands_and_flags_exist(page, options):
    """A page names no command and no flag that `advise` does not have."""
    every = set().union(*options.values()) | OTHER_TOOLS
    wrong = []
    for line in () if page.name in GONE else commands_of(page):
        words = line.split()
        command = words[1] if len(words) > 1 and words[0] == "advise" else ""
        if words[0] == "advise" and re.fullmatch(r"[a-z]+", command) and command not in options:
            wrong.append(line)
        allowed = options.get(command, options[""]) if words[0] == "advise" else every
        wrong += [line for flag in FLAG.findall(line) if flag not in allowed]
    assert wrong == []


def test_the_rooms_are_those_of_the_layer_test():
    """docs/architecture.md lists the rooms that exist, in the order in which they may import."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## The rooms of advisor/")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    shown = [tuple(re.findall(r"`(\w+)`", row)) for row in rows]
    folder = ROOT / "advisor"
    there = [
        tuple(
            room for room in rooms if (folder / room).is_dir() or (folder / f"{room}.py").is_file()
        )
        for rooms in ORDER[1:]  # the first is the package itself
    ]
    assert shown == [rooms for rooms in there if rooms]


def test_the_rooms_of_the_trainers_are_shown():
    """docs/architecture.md names every folder of trainers/, and no other."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## The rooms of trainers/")[2].partition("\n## ")[0]
    shown = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
             for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    folders = {path.parent.name for path in (ROOT / "trainers").glob("*/__init__.py")}
    assert shown == folders


def test_the_glossary_is_sorted_and_says_each_word_once():
    """A reader finds a word where the alphabet says."""
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    words = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)[1:]
    words = [word for word in words if set(word) != {"-"}]
    assert 40 < len(words) <= 60  # a newcomer learns no more
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))


def test_every_key_of_a_plan_has_a_meaning():
    """No key is left to guess at, on docs/plan.md and in an editor."""
    rows = re.findall(
        r"^\| (`.+) \|$", (ROOT / "docs" / "plan.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 40
    assert [row for row in rows if not row.rpartition("|")[2].strip()] == []


def test_the_readme_fits_on_three_screens():
    """At most 120 lines: the rest is on its own pages."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
