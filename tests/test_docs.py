"""Pages are true: lines run, links and commands exist, and rooms are those of the layer test."""

import re
import shlex

import click
import pytest

from advisor.cli import COMMANDS, advise
from advisor.ground.version import __version__
from tests.conftest import ROOT
from tests.test_layers import ORDER
from tools.site.documents import BACK, write_documents


def page_text(name):
    return (ROOT / name).read_text("utf-8")


TEXT = page_text("README.md")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
LINES = [
    line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]
SETUP = [line for line in LINES if line.startswith("python3 -m venv")]


def test_there_are_exactly_two_set_up_lines():
    """One runs the demo, one the tests, as CI does."""
    assert [line.endswith(("advise demo", "-m pytest")) for line in SETUP] == [True, True]
    assert SETUP[0].endswith("advise demo")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_first_page_is_short_and_leads_to_all_others():
    """Seventy lines on a common screen, eight things one may have, one link to the few documents."""
    lines = TEXT.splitlines()
    assert len(lines) <= 70
    assert [line for line in lines if len(line) > 120] == []
    assert len(re.findall(r"^\| an? ", TEXT, flags=re.M)) == 8
    assert TEXT.count("](docs/index.md)") == 1
    pages = [page.read_text("utf-8").count("\n") for page in (ROOT / "docs").glob("*.md")]
    assert (len(pages) <= 15, sum(pages) <= 2700) == (True, True)


def test_the_start_of_the_documents_lists_all_commands():
    """Each with what it does."""
    index = page_text("docs/index.md")
    assert set(re.findall(r"^\| `advise ([a-z]+)", index, flags=re.M)) == set(COMMANDS)


def test_the_transcript_is_what_is_printed(call, monkeypatch):
    """The first screen's transcript is the command's real output."""
    monkeypatch.setenv("COLUMNS", "80")
    command, shown = re.search(r"```console\n\$ (.*?)\n(.*?)```", TEXT, flags=re.S).groups()
    code, out, err = call(*shlex.split(command)[1:])
    assert code == 0, err
    lines = [line.rstrip() for line in shown.strip("\n").splitlines() if line.strip() != "..."]
    assert len(lines) > 10
    assert set(lines) <= {line.rstrip() for line in out.splitlines()}


def test_the_accuracy_is_todays():
    """How wrong memory is, on old, unseen and recent runs, is what the page on it says."""
    said = " ".join(TEXT.partition("- **Memory:")[2].partition("\n- ")[0].split())
    page = page_text("docs/estimates.md")

    def row(name):
        return re.search(rf"\| {name} \|(.*)\|.*\n", page[page.index("second half, unseen") :])[
            1
        ].split("|")

    runs, errors = ([cell.strip() for cell in row(name)] for name in ("runs", "median error"))
    errors = [error.replace("%", " %") for error in errors]
    assert said.startswith(f"{errors[0]}** median error against {runs[0]} published peaks.")
    assert (
        f"Of {runs[2]} runs that nobody had looked at before they were scored, {errors[2]};" in said
    )
    assert f"of all {runs[3]} of them since 2025, after mending, {errors[3]} (" in said


PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "rules/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FAULTS = page_text("tests/faults/__main__.py")
OTHER_TOOLS = {  # of pytest, of the benchmark for GPUs, of the long form of the faults, of vLLM
    *("--pdb", "--device"),
    "--max-loras",  # of vLLM
    *re.findall(r'add_argument\(\s*"(--[a-z-]+)"', FAULTS),
    *(f"--{name}" for name in re.findall(r'^        \("([a-z]+)", ', FAULTS, re.MULTILINE)),
}
GONE = {"CHANGELOG.md"}  # names what no longer exists

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(page):
    """What a link may name behind #: the headings, as forges spell them, and explicit ids."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return {"", *made, *re.findall(r'<a id="([^"]+)">', text)}


@by_name
def test_links_lead_somewhere(page):
    """Every relative link names a file of the project, and a heading of it if it names one."""

    def leads(link):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        return target.exists() and (not anchor or anchor in anchors(target))

    links = [one for one in LINK.findall(page.read_text("utf-8")) if not re.match(r"[a-z]+:", one)]
    assert [link for link in links if not leads(link)] == []


def test_the_version_is_said_alike_everywhere():
    """How the project is cited, and the first section of the changelog."""
    assert f"\nversion: {__version__}\n" in page_text("CITATION.cff")
    assert re.search(r"(?m)^## \[(.+?)\]", page_text("CHANGELOG.md"))[1] == __version__


def test_each_promise_of_security_names_a_test_that_is_there():
    """The table of SECURITY.md says what shows each of its lines."""
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", page_text("SECURITY.md")))
    assert len(named) > 6
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def options():
    """Command, '' for `advise` itself -> its options."""
    with advise.make_context("advise", ["--help"], resilient_parsing=True) as context:
        commands = {"": advise} | {name: advise.get_command(context, name) for name in COMMANDS}
    return {
        name: {"--help"}.union(
            *(one.opts for one in command.params if isinstance(one, click.Option))
        )
        for name, command in commands.items()
    }


def commands_of(page):
    """Every call of `advise`, and every flag that stands alone, in code of the page."""
    text = page.read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    lines += SPAN.findall(BLOCK.sub("", text))
    lines = [line.strip().removeprefix("$ ").partition("  #")[0] for line in lines]
    return [line for line in lines if re.match(r"(advise\b|--[a-z])", line)]


@by_name
def test_commands_and_flags_exist(page, options):
    """A page names no command and no flag that `advise` does not have."""
    every, wrong = set().union(*options.values()) | OTHER_TOOLS, []
    for line in () if page.name in GONE else commands_of(page):
        first, command = [*line.split(), ""][:2]
        if first == "advise" and re.fullmatch(r"[a-z]+", command) and command not in options:
            wrong.append(line)
        allowed = options.get(command, options[""]) if first == "advise" else every
        wrong += [line for flag in FLAG.findall(line) if flag not in allowed]
    assert wrong == []


def rooms_shown(package):
    """The rooms in each row of a table of docs/architecture.md."""
    page = page_text("docs/architecture.md")
    table = page.partition(f"## The rooms of {package}/")[2].partition("\n## ")[0]
    return [tuple(re.findall(r"`(\w+)`", row)) for row in re.findall(r"(?m)^\| (`[^|]+) \|", table)]


def test_the_rooms_are_those_of_the_layer_test():
    """docs/architecture.md lists the rooms in their order, and every folder of trainers/."""
    there = {path.name.removesuffix(".py") for path in (ROOT / "advisor").iterdir()}
    # The first line of the order is the package itself.
    rooms = [tuple(room for room in line if room in there) for line in ORDER[1:]]
    assert rooms_shown("advisor") == [line for line in rooms if line]
    folders = {path.parent.name for path in (ROOT / "trainers").glob("*/__init__.py")}
    assert {name for row in rooms_shown("trainers") for name in row} == folders


def test_the_glossary_is_sorted_and_says_each_word_once():
    """A reader finds a word where the alphabet says."""
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \|$",
        page_text("docs/architecture.md").partition("## Glossary")[2],
        re.MULTILINE,
    )
    words = [word for word in rows[1:] if set(word) != {"-"}]
    assert 40 < len(words) <= 60  # a newcomer learns no more
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))


def test_every_key_of_a_plan_has_a_meaning():
    """No key is left to guess at, on docs/plan.md and in an editor."""
    rows = re.findall(r"^\| (`.+) \|$", page_text("docs/plan.md"), re.MULTILINE)
    assert len(rows) > 40
    assert [row for row in rows if not row.rpartition("|")[2].strip()] == []


def test_the_documents_as_a_site(tmp_path):
    """Built strictly: every link leads to a page, a file or a heading, and no other host is asked;
    what is linked beside docs/ is a page, too, and nothing shines through the head of a page.
    """
    pytest.importorskip("zensical")
    assert write_documents(tmp_path / "docs", BACK)
    (tmp_path / "index.html").touch()  # the live page
    made = {path: path.read_text("utf-8") for path in (tmp_path / "docs").rglob("*.html")}
    asked = r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)'
    assert [one for text in made.values() for one in re.findall(asked, text)] == []
    ids = {path: {"", *re.findall(r'\bid="?([^"\s>]+)', text)} for path, text in made.items()}
    dead, pages = [], set(made) - {tmp_path / "docs" / "404.html"}  # which has no place of its own
    for page in pages:
        for link in re.findall(r'\b(?:href|src)="([^":]+)"', made[page]):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or anchor not in ids.get(target, {anchor}):
                dead.append(f"{page.name}: {link}")
    beside = {"about", "CONTRIBUTING", "SECURITY", "CHANGELOG", "rules/about"}
    names = {path.stem for path in (ROOT / "docs").glob("*.md")} | beside
    assert {str(one.relative_to(tmp_path / "docs").with_suffix("")) for one in pages} == names
    assert not list((tmp_path / "docs").rglob("*.md.txt"))
    assert "/site.css" in made[tmp_path / "docs" / "data.html"]
    assert "background-color" in (tmp_path / "docs" / "site.css").read_text()
    assert dead == []
