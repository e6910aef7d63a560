"""What the page asks: the documents of the commands, and one of its own with the way on.

Both homes answer with this module: `advise ui` in a process for each request, the static page in
its worker.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stderr
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import Case
from advisor.advice.facts import situation_facts
from advisor.advice.planning import make_plan
from advisor.advice.types import Advice
from advisor.commands.output import SCHEMA_VERSION, print_json, with_error
from advisor.commands.session import (
    Stated,
    advise_on,
    load_known_facts,
    nothing_to_train,
    resolve_plan,
)
from advisor.commands.typed import Main, typed
from advisor.export.exporter import exporters
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import refused_as_path, refused_by_system, text_of
from advisor.ground.progress import board
from advisor.ground.types import Answer
from advisor.ground.yaml_files import Document
from advisor.plan.write import plan_text
from advisor.render.answer.page import first_screen, legend
from advisor.render.next_steps import file_to_write
from advisor.render.words import without_flags
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import answers_document, answers_from_document, command_line
from advisor.wizard.walk import Relevance, open_questions, skipped_questions

Found = tuple[int, bytes] | tuple[int, Mapping[str, Any]]  # exit code, and a document
Answering = Callable[[Main, str], Found]
# Questions that the page always shows; the others fold away if they cannot change the answer.
FIRST = ("task", "model", "gpu", "data_path", "data_kind", "data_rows")
NO_DATA = "write your own file here; nothing was read"


def answer(main: Main, answering: Answering, body: str | None) -> tuple[str, int]:
    """The document that a request gets, as text, and its exit code.

    Args:
        main: advisor.cli.main, which this room may not import.
        answering: One of ANSWERS, or of this home alone.
        body: What the command reads as JSON; None: it is too large to be read.
    """
    board.is_shown = False  # nobody sees it
    with redirect_stderr(io.StringIO()):
        try:
            if body is None:
                raise InputError("the request is too large", hint="name the path of the file")
            code, found = answering(main, body)
        except Exception as error:  # what cannot be used, or a bug
            failure = error if isinstance(error, AdviseError) else _explained(error)
            document = with_error({"schema_version": SCHEMA_VERSION}, failure.faults)
            code, found = failure.exit_code, document
        printed = found if isinstance(found, bytes) else typed(lambda: print_json(found), ())[1]
    gc.unfreeze()  # a command keeps all there is, since its process ends; the static page has one
    return printed.decode(), code


def _explained(error: Exception) -> AdviseError:
    known = refused_by_system(error) if isinstance(error, OSError) else refused_as_path(error)
    return known or AdviseError(f"this is a bug in advise: {type(error).__name__}: {error}")


def object_in(body: str, *keys: str) -> dict[str, Any]:
    """The body as an object with no other keys. Raises InputError."""
    given = _parsed(body)
    unknown = sorted(given.keys() - {*keys}) if isinstance(given, dict) else ["no object"]
    if unknown:
        raise InputError(f"the request holds {unknown[0]}", allowed=f"keys: {', '.join(keys)}")
    return dict(given)


def _parsed(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not JSON: {error}") from None


# --------------------------------------------------------------------------- check


def _check(main: Main, body: str) -> Found:
    """`{text, name?, gpu?}` of something pasted, `{path, gpu?}` of a file on this machine; `beside`
    is a second one, `{text, name?}` or `{path}`.
    """
    given = object_in(body, "text", "name", "path", "gpu", "beside")
    beside = given.pop("beside", None)
    texts = [one for one in (given, beside) if one is not None]
    for one in texts:
        is_said = isinstance(one, dict) and (one.get("text") or one.get("path"))
        if not is_said or not all(isinstance(value, str) for value in one.values()):
            raise InputError("there is nothing to check", allowed="a text, or the path of a file")
    is_pasted, files = "text" in given, list[str]()
    on = ("--gpu", given["gpu"]) if given.get("gpu") else ()
    with tempfile.TemporaryDirectory(prefix="advise-check-") as folder:
        for one in texts:
            if "text" not in one:
                path = os.path.abspath(os.path.expanduser(one["path"]))
                files.append(path if is_pasted else one["path"])
                continue
            name = Path(one.get("name") or pasted_name(one["text"])).name
            name = name if name not in files else f"other-{name}"
            Path(folder, name).write_text(one["text"], "utf-8", newline="")
            files.append(name if is_pasted else os.path.join(folder, name))
        with chdir(folder if is_pasted else "."):
            code, printed = typed(main, ("check", "--json", *on, "--", *files))
            if b'"where": "--gpu"' not in printed:
                return code, printed
            return typed(main, ("check", "--json", "--", *files))  # data, which are of no GPU


LOOKS = (  # of a pasted text -> the name that it is checked under; the first that fits counts
    (r'\A\{[\s\S]*"cells"\s*:\s*\[[\s\S]*"cell_type"', "notebook.ipynb"),
    (r"\A(#.*\n|\s)*(from [\w.]+ )?import \w", "script.py"),
    (
        r"(?m)^[^{\n]{0,400}\{ ?['\"](eval_)?(loss|reward|current_steps)['\"]: ['\"]?[-\dni]",
        "error.txt",
    ),
    (r"(?mi)^\W*step *[|\t] *training loss\b", "error.txt"),
    (r"(?mi)^[^{[\"\n]{0,200}\b(step|iter)\W{1,3}\d.{0,200}\bloss\W{1,3}\d", "error.txt"),
    (r"(?m)^\W*[\w.]*(Error|Exception): |^.{0,200}Traceback \(most recent", "error.txt"),
    (r"\A[{\[][\s\S]*\}\s*\n\s*\{", "pasted.jsonl"),
    (r"\A[{\[]", "pasted.json"),
    (r"out of memory|OutOfMemoryError", "error.txt"),
    (r"(?m)^\s*(from [\w.]+ import |import \w|\w+\s*=\s*\w+\()", "script.py"),
    (r"\A(#.*\n\s*|---\s*\n)*[\w.-]+:(\s|$)", "config.yaml"),
    (r"\A#!", "command.sh"),  # or a program with a flag, a file or a pair behind it
    (
        r"(?m)^\s*(\$ )?(\S+=\S+ )*[\w./-]+ ([^:(,\n]|\\\n)*(--\w|\.(ya?ml|py)\b|\w=\S)",
        "command.sh",
    ),
    (r"\A.*[,\t]", "pasted.csv"),
    (r"", "pasted.txt"),
)


def pasted_name(text: str) -> str:
    """The name of a file that a pasted text is checked as."""
    start = text.lstrip()[:200_000]
    for look, name in LOOKS:  # that of a command may take the square of what it looks at
        if re.search(look, start[:4000] if name == "command.sh" else start):
            return name
    raise AssertionError("the last one fits everything")


# --------------------------------------------------------------------------- the way on


def _plan(main: Main, body: str) -> Found:
    """What the page shows beside the document of `advise --json`: the first screen as texts, the
    plan, the lines to type, and the questions that can still change the answer.

    Of answers, or of `{answers, file?, path?, to?}`: `file` is the name of the data that the page
    has counted, `path` writes the plan there, as `advise --plan` does, `to` names a form of `advise
    export` whose files are wanted.
    """
    given = _parsed(body)
    is_more = isinstance(given, dict) and "answers" in given
    given = object_in(body, "answers", "file", "path", "to") if is_more else {"answers": given}
    file = given.get("file")
    if not isinstance(file, str | None):
        raise InputError("`file` is no name of a file", allowed="a text")
    if to := given.get("to"):
        return _export(main, given["answers"], str(to))
    if (path := given.get("path")) is not None:
        words = (
            "--json",
            "--answers",
            "-",
            "--plan",
            str(path),
            *(("--data", file) if file else ()),
        )
        return typed(main, words, json.dumps(given["answers"]).encode())
    facts = load_known_facts(())
    answers, warnings = answers_from_document(Document("answers", lambda: given["answers"]), facts)
    advice, ruleset = advise_on(Stated(answers=answers, warnings=warnings))
    screen, named = first_screen(advice), _with_file(advice, file)
    lines = [(one.text, one.commands) for one in (first_screen(named) if file else screen).steps]
    line = _counted(command_line(named.situation.answers, {}, command="advise"))
    plan, missing = _plan_to_show(named, ruleset)
    engine = advice.recommendation.engine
    forms = [name for name, form in exporters().items() if form.ANSWERS]
    matter, folded = _questions(advice, ruleset)
    return 0 if advice.fits else 3, {
        "schema_version": SCHEMA_VERSION,
        "headline": without_flags(screen.answer),
        "screen": {
            label: [without_flags(item.text) for item in items]
            for label, items in screen.labelled.items()
        },
        "steps": [{"text": text, "commands": [*map(_counted, each)]} for text, each in lines],
        "warnings": [without_flags(text) for text in advice.warnings],
        "answers": answers_document(answers),
        "command": line,
        "plan": plan,
        "missing": missing,
        "no_plan": nothing_to_train(advice, ruleset).partition(";")[0],
        "bundle": f"{line} --plan plan.yaml && advise export plan.yaml --to bundle",
        "forms": [engine.form] if engine is not None and engine.form else forms if plan else [],
        "names": [
            item.text
            for block in legend(advice).blocks
            for item in block.items
            if item.tone == "plain"  # the others say what to type
        ],
        "matter": matter,
        "folded": folded,
    }


def _with_file(advice: Advice, file: str | None) -> Advice:
    """The advice for lines and a plan that name the data, which only the page has read."""
    if not file:
        return advice
    situation = advice.situation
    known = {**situation.answers.known, "data_path": Answer(value=file, origin="asked")}
    return replace(
        advice, situation=replace(situation, answers=replace(situation.answers, known=known))
    )


def _counted(line: str) -> str:
    """A line without what is counted in the file that it names."""
    return re.sub(r" --data-(?:kind|rows|tokens) \S+", "", line) if " --data " in line else line


def _plan_to_show(advice: Advice, ruleset: Ruleset) -> tuple[str | None, list[str]]:
    """The text of plan.yaml, or None, and what it lacks. Without a data file it names the one that
    the answer asks for, and says so.
    """
    made, comments, missing = resolve_plan(advice, ruleset)
    if missing == ["data.path"]:
        place = file_to_write(advice)[1].get("data_path")
        made, comments = make_plan(advice, advice.recommendation, ruleset)
        if place is None or made.data is None:
            return None, missing
        made = replace(made, data=replace(made.data, path=str(place)))
        comments = {**comments, ("data", "path"): NO_DATA}
    return None if made is None else plan_text(made, comments), list(missing)


def _questions(advice: Advice, ruleset: Ruleset) -> tuple[list[str], list[str]]:
    """The open questions that may still change the answer, and those that apply and cannot; of
    those that the page always shows nothing is said.
    """
    situation, answers = advice.situation, advice.situation.answers
    facts = situation_facts(situation)

    def fits(_: object, chain: str, __: object = None) -> Mapping[str, Any]:
        case = Case.build(situation, ruleset).with_suggestion()
        found = case.coarse_fits(chain)
        return {**case.facts, **{f"fits_{scheme}": fit for scheme, fit in found.items()}}

    relevant = Relevance(ruleset, lambda _: facts, fits)
    opened = open_questions(ruleset.facts, answers, ())
    put = [fact.id for fact in skipped_questions(ruleset.facts, answers, FIRST)]
    matter = [name for name in put if relevant(name, answers, opened)]
    return matter, [name for name in put if name not in matter]


def _export(main: Main, answers: Any, to: str) -> Found:
    """The files of a form of `advise export`, as texts."""
    with tempfile.TemporaryDirectory(prefix="advise-export-") as folder:
        out = Path(folder, f"{Path(to).name}-files")
        words = ("export", "--json", "--answers", "-", "--to", to, "--out", str(out))
        code, printed = typed(main, words, json.dumps(answers).encode())
        document = json.loads(printed.replace(f"{folder}{os.sep}".encode(), b""))
        if out.is_dir():
            files = [path for path in sorted(out.rglob("*")) if path.is_file()]
            document["files"] = {str(path.relative_to(out)): text_of(path) for path in files}
    return code, document


def _command(*words: str) -> Answering:
    """A command that reads the body."""
    return lambda main, body: typed(main, words, body.encode())


ANSWERS: Mapping[str, Answering] = {
    "advise": _command("--json", "--answers", "-"),
    "check": _check,
    "estimate": _command("estimate", "--json", "--specs", "-"),
    "plan": _plan,
}
