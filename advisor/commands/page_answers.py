"""What the page asks: the documents of the commands, and one of its own with the way on.

Both homes answer with this module: `advise ui` in a process for each request, the static page in
its worker.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from advisor.advice.case import Case
from advisor.advice.facts import situation_facts
from advisor.advice.planning import make_plan
from advisor.advice.types import Advice
from advisor.commands.output import SCHEMA_VERSION, print_json, with_error
from advisor.commands.session import (
    Stated,
    advise_on,
    incomplete,
    load_known_facts,
    nothing_to_train,
    resolve_plan,
)
from advisor.export.exporter import exporters
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import refused_as_path, refused_by_system, text_of
from advisor.ground.yaml_files import Document
from advisor.plan.model import Comments, Plan
from advisor.plan.write import plan_text, write_plan_file
from advisor.render.answer.page import first_screen, legend
from advisor.render.next_steps import file_to_write, plan_command
from advisor.render.words import without_flags
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import answers_document, answers_from_document, command_line
from advisor.wizard.walk import Relevance, applies, open_questions, questions

Main = Callable[[], object]  # the command line: reads sys.argv and ends with SystemExit
Resolved = tuple[Plan | None, Comments, Sequence[str]]
Answering = Callable[[Main, str], int]  # prints one document, returns the exit code
# Questions that the page always shows; the others fold away if they cannot change the answer.
FIRST = ("task", "model", "gpu", "data_path", "data_kind", "data_rows")
NO_DATA = "write your own file here; nothing was read"


def answer(
    main: Main, name: str, body: str, more: Mapping[str, Answering] | None = None
) -> tuple[str, int]:
    """The document that a request gets, as text, and its exit code.

    Args:
        main: advisor.cli.main, which this room may not import.
        name: advise | check | estimate | plan.
        body: What the command reads as JSON.
        more: Further names, which this home alone answers.
    """
    with _streams(body) as out:
        code = _guarded(lambda: {**ANSWERS, **(more or {})}[name](main, body))
    return out.getvalue().decode(), code


@contextmanager
def _streams(given: str) -> Iterator[io.BytesIO]:
    """Standard input with this text; yields what standard output receives."""
    before, out = (sys.stdin, sys.stdout, sys.stderr, sys.argv), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), "utf-8")
    sys.stdout = wrapper = io.TextIOWrapper(out, "utf-8", write_through=True)
    sys.stderr = io.StringIO()
    try:
        yield out
    finally:
        wrapper.detach()
        sys.stdin, sys.stdout, sys.stderr, sys.argv = before


def _printed() -> io.BytesIO:
    return cast(io.BytesIO, sys.stdout.buffer)


def _taken() -> bytes:
    """What was printed so far, which is taken back."""
    printed = _printed().getvalue()
    _printed().seek(0)
    _printed().truncate()
    return printed


def _guarded(work: Callable[[], int]) -> int:
    """The exit code; what cannot be used, and a bug, is the document."""
    try:
        return work()
    except Exception as error:
        failure = error if isinstance(error, AdviseError) else _explained(error)
        _taken()
        print_json(with_error({"schema_version": SCHEMA_VERSION}, failure.faults))
        return failure.exit_code


def _explained(error: Exception) -> AdviseError:
    known = refused_by_system(error) if isinstance(error, OSError) else refused_as_path(error)
    return known or AdviseError(f"this is a bug in advise: {type(error).__name__}: {error}")


def _typed(main: Main, *words: str) -> int:
    """The exit code of the command that these words are."""
    sys.argv = ["advise", *words]
    try:
        main()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    return 0


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


def _check(main: Main, body: str) -> int:
    """`{text, name?, gpu?}` of something pasted, `{path, gpu?}` of a file on this machine."""
    given = object_in(body, "text", "name", "path", "gpu")
    texts = {key: value for key, value in given.items() if value is not None}
    if not all(isinstance(value, str) for value in texts.values()) or not (
        texts.get("text", texts.get("path", ""))
    ):
        raise InputError("there is nothing to check", allowed="a text, or the path of a file")
    if "text" not in texts:
        return _check_path(main, texts["path"], texts.get("gpu"))
    name = Path(texts.get("name") or file_name(texts["text"])).name
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="advise-check-") as folder:
        os.chdir(folder)
        try:
            Path(name).write_text(texts["text"], "utf-8", newline="")
            return _check_path(main, name, texts.get("gpu"))
        finally:
            os.chdir(before)


def _check_path(main: Main, path: str, gpu: str | None) -> int:
    words, on = ("check", "--json"), ("--gpu", gpu) if gpu else ()
    code = _typed(main, *words, *on, "--", path)
    if on and code == InputError.exit_code and b'"where": "--gpu"' in _printed().getvalue():
        _taken()
        return _typed(main, *words, "--", path)  # data, which are of no GPU
    return code


COMMAND_LINE = re.compile(r"(?m)^\s*(\$ )?(\S+=\S+ )*(\S*/)?(trl|axolotl|llamafactory-cli|lmf) \w")
PYTHON = re.compile(r"(?m)^\s*(from [\w.]+ import |import \w|\w+\s*=\s*\w+\()")


def file_name(text: str) -> str:
    """The name of a file that a pasted text is checked as."""
    start = text.lstrip()
    if re.search(r"out of memory|OutOfMemoryError|Traceback \(most recent", text[:200_000]):
        return "error.txt"
    if start.startswith("{") and '"cells"' in text and '"nbformat"' in text:
        return "notebook.ipynb"
    if start.startswith(("{", "[")):
        return "pasted.jsonl" if re.search(r"\}\s*\n\s*\{", text) else "pasted.json"
    if COMMAND_LINE.search(text) or start.startswith("#!"):
        return "command.sh"
    if PYTHON.search(text):
        return "script.py"
    if re.match(r"(#.*\n|---\s*\n|\s*\n)*[\w.-]+:(\s|$)", text):
        return "config.yaml"
    first = start.partition("\n")[0]
    return "pasted.csv" if first.count(",") or first.count("\t") else "pasted.txt"


# --------------------------------------------------------------------------- the way on


def _plan(main: Main, body: str) -> int:
    """Answers, or `{answers, path?, to?}`: the way on from an answer.

    `path` also writes the plan there, `to` names a form of `advise export` whose files are wanted.
    """
    given = _object_of_plan(body)
    if to := given.get("to"):
        return _export(main, given["answers"], str(to))
    facts = load_known_facts(())
    answers, warnings = answers_from_document(Document("answers", lambda: given["answers"]), facts)
    advice, ruleset = advise_on(Stated(answers=answers, warnings=warnings))
    resolved = made, comments, missing = resolve_plan(advice, ruleset)
    document, nothing = way_on(advice, ruleset, resolved), nothing_to_train(advice, ruleset)
    path = given.get("path")
    if path is not None:
        if made is None:
            if not nothing and advice.fits:
                raise incomplete(missing)
            raise InputError(nothing or "nothing fits, so there is no plan to write", where=path)
        write_plan_file(made, comments, Path(str(path)).expanduser())
        document |= {"plan_file": str(path), "run": plan_command(advice, str(path))}
    print_json(document)
    return 0 if advice.fits else 3


def _object_of_plan(body: str) -> dict[str, Any]:
    given = _parsed(body)
    if isinstance(given, dict) and "answers" in given:
        return object_in(body, "answers", "path", "to")
    return {"answers": given}


def way_on(advice: Advice, ruleset: Ruleset, resolved: Resolved) -> dict[str, Any]:
    """What the page shows beside the document of `advise --json`: the first screen as texts, the
    plan, the lines to type, and the questions that can still change the answer.
    """
    screen, answers = first_screen(advice), advice.situation.answers
    plan, missing = _plan_to_show(advice, ruleset, resolved)
    line = command_line(answers, {}, command="advise")
    engine = advice.recommendation.engine
    forms = [name for name, form in exporters().items() if form.ANSWERS]
    matter, folded = _questions(advice, ruleset)
    return {
        "schema_version": SCHEMA_VERSION,
        "headline": screen.answer,
        "screen": {
            label: [without_flags(item.text) for item in items]
            for label, items in screen.labelled.items()
        },
        "steps": [{"text": one.text, "commands": list(one.commands)} for one in screen.steps],
        "answers": answers_document(answers),
        "command": line,
        "plan": plan,
        "missing": missing,
        "no_plan": nothing_to_train(advice, ruleset).partition(";")[0],
        "plan_file": None,
        "run": None,
        "bundle": f"{line} --plan plan.yaml && advise export plan.yaml --to bundle",
        "forms": [engine.form] if engine is not None and engine.form else forms if plan else [],
        "names": [item.text for block in legend(advice).blocks for item in block.items],
        "matter": matter,
        "folded": folded,
    }


def _plan_to_show(advice: Advice, ruleset: Ruleset, resolved: Resolved) -> tuple[Any, list[str]]:
    """The text of plan.yaml, or None and what it lacks. Without a data file it names the one that
    the answer asks for, and says so.
    """
    made, comments, missing = resolved
    if missing == ["data.path"]:
        place = file_to_write(advice)[1].get("data_path")
        made, comments = make_plan(advice, advice.recommendation, ruleset)
        if place is None or made.data is None:
            return None, missing
        made = replace(made, data=replace(made.data, path=str(place)))
        comments = {**comments, ("data", "path"): NO_DATA}
    return (None if made is None else plan_text(made, comments)), list(missing)


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
    put = [
        fact.id
        for fact in questions(ruleset.facts)
        if fact.id in opened - {*FIRST} and applies(fact, answers, ruleset.facts)
    ]
    matter = [name for name in put if relevant(name, answers, opened)]
    return matter, [name for name in put if name not in matter]


def _export(main: Main, answers: Any, to: str) -> int:
    """The files of a form of `advise export`, as texts."""
    with tempfile.TemporaryDirectory(prefix="advise-export-") as folder:
        out = Path(folder) / f"{Path(to).name}-files"
        sys.stdin = io.TextIOWrapper(io.BytesIO(json.dumps(answers).encode()), "utf-8")
        words = ("export", "--json", "--answers", "-", "--to", to, "--out", str(out))
        code = _typed(main, *words)
        document = json.loads(_taken())
        if out.is_dir():
            document["files"] = {
                str(path.relative_to(out)): text_of(path)
                for path in sorted(out.rglob("*"))
                if path.is_file()
            }
        if "messages" in document:
            document["messages"] = [
                one.replace(folder + os.sep, "") for one in document["messages"]
            ]
    print_json(document)
    return code


def _advise(main: Main, body: str) -> int:
    """`advise --json --answers -`."""
    return _typed(main, "--json", "--answers", "-")


def _estimate(main: Main, body: str) -> int:
    """`advise estimate --json --specs -`."""
    return _typed(main, "estimate", "--json", "--specs", "-")


ANSWERS: Mapping[str, Answering] = {
    "advise": _advise,
    "check": _check,
    "estimate": _estimate,
    "plan": _plan,
}
