"""Every file inside the tools' own source packages is read: none ends in a bug, and what they ship as
an example of a training is taken as one.

    ADVISE_TOOL_EXAMPLES=FOLDER pytest -m long tests/extras/other_tools/test_examples_long.py

FOLDER holds one folder a tool (llamafactory, axolotl) with its unpacked source package.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from advisor.extras.other_tools.data_sets import data_of, recognise_set
from advisor.extras.other_tools.file import looks_like_configuration, read_file
from advisor.extras.other_tools.yaml_text import edited
from advisor.ground.errors import AdviseError

VARIABLE = "ADVISE_TOOL_EXAMPLES"
FOLDER = Path(os.environ.get(VARIABLE, ""))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no folder"),
]
ENDINGS = (".yaml", ".yml", ".json", ".sh")
LEAST = {"llamafactory": 50, "axolotl": 250}  # files of a training


def files(tool):
    """Every file of the package that may be a configuration."""
    found = [path for path in sorted((FOLDER / tool).rglob("*")) if path.suffix in ENDINGS]
    return [path for path in found if path.is_file() and looks_like_configuration(path)]


@pytest.mark.parametrize("tool", LEAST)
def test_no_file_of_a_tool_ends_in_a_bug(tool):
    """Each is read with its data, changed as its faults say, and read again; or refused in words."""
    counts = Counter()
    for path in files(tool):
        try:
            file = read_file(path)
        except AdviseError as refused:
            counts["refused" if refused.faults[0].hint else "refused without a hint"] += 1
            continue
        counts[file.tool] += 1
        for ref in data_of(file):
            recognise_set(ref)
        if file.is_script:
            continue
        changes = {key: new for one in file.faults for key, new in (one.instead or {}).items()}
        new = edited(file.text, changes)
        comments = [line for line in file.text.splitlines() if line.startswith("#")]
        assert [line for line in comments if line not in new] == [], path
    assert sum(counts.values()) > 5
    assert counts["refused without a hint"] == 0
    assert counts[tool] >= LEAST[tool], counts
