"""What a person pastes: the lines that a text offers, and a clean shell that takes them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import yaml

HERE = Path(__file__).parent
PLAYED = yaml.safe_load((HERE / "played.yaml").read_text(encoding="utf-8"))
PROGRAMS = {"advise", *PLAYED["programs"], *PLAYED["real"]}
TIME_S = 240  # a real training of 288 steps takes a busy machine more than one minute

# ------------------------------------------------------------------ the lines of a text

_KNOWN = "|".join(sorted(map(re.escape, PROGRAMS), key=len, reverse=True))
_COMMAND = rf"(?:\w+=\S+ )*(?:[\w./~-]*/)?(?:{_KNOWN})(?= \S|$)"
_WHOLE = re.compile(rf"^ *(?:\$ )?({_COMMAND}.*)$|^\$ (.+)$")
# What may be a program stands below a line that ends in a colon, behind a label, or has options: kept, so that a new one
# is seen.
_BELOW = re.compile(r"^ +([a-z~./][\w./~-]* \S.*)$")
_OPTIONS = re.compile(r"^ +([a-z~./][\w./~-]* (?!  ).* --[a-z].*)$")
_LABELLED = re.compile(
    rf"^.*\w.*[:;,] +({_COMMAND}[^`]*)$"
    r"|^ *[A-Z][\w ,]*:  +([a-z][\w.-]* \S.*)$"
    r"|^.*\w: +([a-z][\w./-]* [^`]*--[a-z][^`]*)$"
)
_SPAN = re.compile(rf"(?<!`)`({_COMMAND}[^`]*|[a-z]+ [^`]*--[a-z][^`]*)`")
_FENCE = re.compile(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"<pre[^>]*>(.*?)</pre>", re.DOTALL)
_USAGE = re.compile(r"\[[A-Z]+\]|\[--")  # advise [OPTIONS] [COMMAND]
_OURS = re.compile(r"(?:\S*/)?advise(?: --| \w+|$)")
_MEANT = re.compile(
    r"advise(?: --?\w\S*| \w+)(?: --?\w\S*)* [^- ]"
)  # more than a name and its options
_PROSE = re.compile(r"[,:] |[,.;]$| \(|(?: |^)(?:a|and|is|of|or|says|shows|the|with|without) ")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
PLACEHOLDER = re.compile(
    r"\b(?:[A-Z]+_)+[A-Z]+\b(?!=)|(?<![\w.])(?:COL|DATA|ENCODING|FILE|FOLDER|FORM|GPU|ID|MODEL|N|NAME|PATH|PLAN"
    r"|RUN|TEXT|A B)(?![\w.])|\.\.\.|\(flags\)"
)


def lines_of(text: str, form: str) -> list[str]:
    """Every line to paste, each once, in its order: of a `screen`, `page` (Markdown) or `html`."""
    found = {"screen": _on_screen, "page": _on_page, "html": _in_html}[form](text)
    lines = dict.fromkeys(line.strip() for line in found)
    return [line for line in lines if line and not _USAGE.search(line)]


def _on_screen(text: str) -> Iterator[str]:
    indent: int | None = None  # of a line that ends in a colon
    plain = list[str]()
    for line in text.splitlines():
        deep = len(line) - len(line.lstrip())
        match = _WHOLE.match(line) if deep or line.startswith("$ ") else None
        below = indent is not None and deep > indent
        match = match or (_BELOW if below else _OPTIONS).match(line)
        match = match or _LABELLED.match(line)
        if match and _is_command(found := next(filter(None, match.groups()))):
            yield from _spans("\n".join(plain))
            plain.clear()
            yield found
            continue
        indent = deep if line.endswith(":") else None
        plain.append(line)
    yield from _spans("\n".join(plain))


def _is_command(line: str) -> bool:
    if _OURS.match(line):
        return True
    return " " in line and not _PROSE.search(_QUOTED.sub("", line).partition(" #")[0])


def holds_placeholder(line: str) -> bool:
    """Whether a word of it has to be replaced before it is pasted."""
    return PLACEHOLDER.search(_QUOTED.sub("", line).partition(" #")[0]) is not None


def _spans(text: str) -> Iterator[str]:
    return (" ".join(match[1].split()) for match in _SPAN.finditer(text))


def _on_page(text: str) -> Iterator[str]:
    for place, part in enumerate(_FENCE.split(text)):
        if place % 2 == 0:  # where a command is a name, or how it is used, nobody pastes it
            spans = _spans(re.sub(r"^ *```.*?^ *```", "", part, flags=re.M | re.S))
            yield from (
                span for span in spans if _MEANT.match(span) and not PLACEHOLDER.search(span)
            )
            continue
        lines = [line.strip() for line in part.replace("\\\n", " ").splitlines()]
        prompts = any(line.startswith("$ ") for line in lines)
        for line in lines:
            if line.startswith("$ ") or (line and line[0] != "#" and not prompts):
                yield line.removeprefix("$ ")


def _in_html(text: str) -> Iterator[str]:
    for block in _BLOCK.findall(text):
        line = unescape(re.sub(r"<[^>]+>", "", block)).strip()
        if "\n" not in line:
            yield line


# ------------------------------------------------------------------ what is to be written first

_ROW = re.compile(
    r"(?:Put lines like|such as) (\{.*?\})(?: into|, and check)"
    r"|(?:write question, passages and right answer|correct the bad answers) into \S+\.jsonl|let it write \S+\.jsonl"
)
ROWS = 600


def obey(text: str, lines: list[str], folder: Path) -> None:
    """Write the files that a text asks for: rows like the one it shows, or documents."""
    said = " ".join(text.split())
    for row in _ROW.finditer(said):
        cells = json.loads(row[1] or '{"prompt": "...", "completion": "..."}')
        checked = re.search(r"advise check (?:first-)?(\S+\.jsonl)", said[row.end() :])
        assert checked is not None
        for name in re.findall(rf"(?:\w+-)?{checked[1]}", " ".join(lines)):
            rows = (json.dumps(_filled(cells, n)) + "\n" for n in range(ROWS))
            (folder / name).write_text("".join(rows))
    if "Put your documents" in said:
        (folder / "documents").mkdir(exist_ok=True)
        for n in range(9):
            body = "\n\n".join(f"Pump {n}.{part} has a valve for care {part}." for part in range(9))
            (folder / "documents" / f"{n}.txt").write_text(body)


def _filled(cells: dict[str, object], n: int) -> dict[str, object]:
    labels = n % 2 == 0 if cells.get("label") is True else "abc"[n % 3]
    return {key: labels if key == "label" else f"{key} {n} on a thing" for key in cells}


# ------------------------------------------------------------------ the shell

PLAYS = """\
#!{python} -IS
import os, re, sys
about, rest, words = {about!r}, [], sys.argv[1:]
KINDS = {{"FILE": lambda w: os.path.exists(w), "ANY": lambda w: w != "",
         "NAME": lambda w: re.fullmatch(r"[\\w.:/@=-]*[a-z][\\w.:/@=-]*", w) is not None}}
def fits(kind, word):
    return KINDS[kind](word) if kind in KINDS else re.fullmatch(kind, word) is not None
def refuse(why):
    sys.exit(f"{name}: {{why}}: {{sys.argv[1:]}}")
while words:
    word, equals, value = words.pop(0).partition("=")
    if not word.startswith("-") or word == "-":
        rest.append(word + equals + value)
        continue
    if word not in about["options"]:
        refuse(f"no option {{word}}")
    kind = about["options"][word]
    if kind:
        value = value if equals else words.pop(0) if words else refuse(f"{{word}} needs a value")
        fits(kind, value) or refuse(f"{{word}} takes {{kind}}, not {{value!r}}")
for pattern in about["operands"]:
    kinds = pattern.split()
    if len(kinds) == len(rest) and all(map(fits, kinds, rest)):
        sys.exit(0)
refuse("other operands")
"""


class Shell:
    """A clean shell, line by line in one folder: what `cd` does stays, nothing else."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = self.home = folder
        self.programs = programs

    def paste(self, line: str) -> tuple[int, str]:
        """Exit code of a line, and what it said."""
        read, write = os.pipe()
        script = 'eval "$1"; code=$?; pwd -P >&"$2"; exit $code'
        with subprocess.Popen(
            ["bash", "-c", script, "bash", line, str(write)], cwd=self.folder,
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "HOME": str(self.home), "COLUMNS": "80",
                 "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "ADVISE_RUNS": "off"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", process_group=0, pass_fds=[write],
        ) as shell:  # fmt: skip
            os.close(write)
            try:
                said, _ = shell.communicate(timeout=TIME_S)
            except subprocess.TimeoutExpired:
                os.killpg(shell.pid, signal.SIGKILL)
                said = f"still at work after {TIME_S} s\n{shell.communicate()[0]}"
        with os.fdopen(read) as pipe:
            self.folder = Path(pipe.read().strip() or self.folder)
        return shell.returncode, said


PYTHON = """\
#!{python} -IS
# A module has to be there and code has to compile; the product, pip and environments are played.
import importlib.util, os, shutil, sys
here, words = os.path.dirname(__file__), [word for word in sys.argv[1:] if word != "-P"]
if words[:1] == ["-c"]:
    compile(words[1], "-c", "exec")
elif words[:1] == ["-m"]:
    name, rest = words[1], words[2:]
    if name in ("advisor", "pip"):
        name = {{"advisor": "advise"}}.get(name, name)
        os.execv(os.path.join(here, name), [name, *rest])
    sys.path[:0] = [{root!r}, *{path!r}]
    if name == "venv":
        made = os.path.join([word for word in rest if word[0] != "-"][-1], "bin")
        os.makedirs(made, exist_ok=True)
        for tool in ("advise", "pip", "python", "python3"):
            shutil.copy(os.path.join(here, tool), made)
        open(os.path.join(made, "activate"), "w").write("PATH=" + os.path.abspath(made) + ":$PATH")
    elif importlib.util.find_spec(name.partition(".")[0]) is None or importlib.util.find_spec(name) is None:
        sys.exit("no module " + name)
    missing = [word for word in rest if word.startswith(("tests/", "docs/")) and not os.path.exists(os.path.join({root!r}, word))]
    sys.exit("there is no " + missing[0] if missing else 0)
elif words != ["-V"]:
    sys.exit(f"python: {{words}}")
"""


def write_programs(folder: Path) -> None:
    """The foreign programs, played: each checks its words by played.yaml."""
    root = str(HERE.parent.parent)
    path = [part for part in sys.path if "site-packages" in part]
    texts = dict.fromkeys(
        ("python", "python3"), PYTHON.format(python=sys.executable, root=root, path=path)
    )
    for name, about in PLAYED["programs"].items():
        about = {"options": {}, "operands": [], **about}
        texts[name] = PLAYS.format(python=sys.executable, about=about, name=name)
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
