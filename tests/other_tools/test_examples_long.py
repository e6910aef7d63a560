"""Every file inside the tools' own source packages is read: none ends in a bug, and what they ship as
an example of a training is taken as one.

    ADVISE_TOOL_EXAMPLES=FOLDER pytest -m long tests/other_tools/test_examples_long.py

FOLDER holds one folder a tool (trl, llamafactory, axolotl) with its unpacked source package. A file
`FOLDER/TOOL.python` may hold the path of a Python in which the tool is installed: its own parser
then has the last word about each file that is read.
"""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from advisor.ground.errors import AdviseError
from advisor.other_tools.checking.edit import edited
from advisor.other_tools.data.reading import data_of, understood
from advisor.other_tools.reading.file import read_file
from advisor.other_tools.reading.recognise import looks_like_configuration
from advisor.other_tools.tables.keys import tool_names

VARIABLE = "ADVISE_TOOL_EXAMPLES"
FOLDER = Path(os.environ.get(VARIABLE, ""))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no folder"),
]
ENDINGS = (".yaml", ".yml", ".json", ".sh")
LEAST = {"trl": 0, "llamafactory": 50, "axolotl": 250}  # files of a training
AXOLOTL_PARSES = """
import contextlib, io, json, sys, yaml
from axolotl.utils.schemas.config import AxolotlInputConfig
verdicts = {}
for path in json.load(sys.stdin):
    try:
        with open(path, encoding="utf-8") as file:
            AxolotlInputConfig(**yaml.safe_load(file))
        verdicts[path] = []
    except Exception as error:
        found = error.errors() if hasattr(error, "errors") else [{"type": "other", "loc": ()}]
        verdicts[path] = [[one["type"], [str(part) for part in one["loc"]]] for one in found]
print(json.dumps(verdicts))
"""


def files(tool):
    """Every file of the package that may be a configuration."""
    found = [path for path in sorted((FOLDER / tool).rglob("*")) if path.suffix in ENDINGS]
    return [path for path in found if path.is_file() and looks_like_configuration(path)]


@pytest.mark.parametrize("tool", tool_names())
def test_no_file_of_a_tool_ends_in_a_bug(tool):
    """Each is read with its data, changed as its faults say, and read again; or refused in words."""
    counts = Counter()
    for path in files(tool):
        try:
            file = read_file(path, environment={})
        except AdviseError as refused:
            counts["refused" if refused.faults[0].hint else "refused without a hint"] += 1
            continue
        counts[file.tool] += 1
        for ref in data_of(file).refs:
            understood(ref)
        changes = {key: value for one in file.faults for key, value in one.instead.items()}
        new = edited(file.text, changes, loader=file.loader)
        comments = [line for line in file.text.splitlines() if line.startswith("#")]
        assert [line for line in comments if line not in new] == [], path
    assert sum(counts.values()) > 5
    assert counts["refused without a hint"] == 0
    assert counts[tool] >= LEAST[tool], counts


def test_axolotl_agrees_with_what_is_said_of_its_files():
    """A file whose values Axolotl's own model refuses has an error at that key, and no other has."""
    python = FOLDER / "axolotl.python"
    if not python.is_file():
        pytest.skip("axolotl.python names no Python with Axolotl")
    read = {}
    for path in files("axolotl"):
        try:
            file = read_file(path, environment={})
        except AdviseError:
            continue
        if file.tool == "axolotl" and not file.script:
            read[os.fspath(path)] = {
                one.key.split(".")[0] for one in file.faults if one.severity == "error"
            }
    done = subprocess.run(
        [python.read_text().strip(), "-c", AXOLOTL_PARSES],
        input=json.dumps(list(read)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    verdicts = json.loads(done.stdout.splitlines()[-1])
    unlike = {}
    for path, found in verdicts.items():
        # What its validators refuse of several keys together is no matter of one key.
        theirs = {loc[0] for kind, loc in found if loc and kind not in ("value_error", "other")}
        missed = theirs - read[path]
        invented = read[path] if not found else set()
        if missed or invented:
            unlike[path] = (sorted(missed), sorted(invented))
    assert len(verdicts) > 250
    assert unlike == {}
