"""What every file keeps to: lines that fit on a screen, no address of one machine."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("advisor", "trainers")
# Words for tools at the end of a line, which ruff does not count either.
FOR_TOOLS = re.compile(r"\s+# (?:noqa|type: ignore|fmt:).*")
ONE_MACHINE = {
    "the root folder of somebody's work": r"(?<![\w./-])/(?:[w]ork|[r]oot|workspace|mnt/data)/",
    "a home folder (write /home/me)": r"(?<![\w./-])/(?:home|Users)/(?!me\b)\w+",
    "a scratch folder": r"(?<![\w./-])/tmp/\w",
    "an address of a package registry": r"files\.p[y]thonhosted|p[y]pi\.org|registry\.n[p]mjs"
    r"|(?:extra-)?index-url|[\w-]+\.(?:internal|corp|local)\b(?=[:/])",
}


def wide_lines(folder: str, columns: int) -> list[str]:
    """Lines of Python over the width, as path:line."""
    files = list((ROOT / folder).rglob("*.py"))
    assert files, folder
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(FOR_TOOLS.sub("", line)) > columns
    ]


@pytest.mark.parametrize("folder", PRODUCT)
def test_product_code_is_at_most_100_columns_wide(folder):
    """Two files fit beside each other."""
    assert wide_lines(folder, 100) == []


def test_few_lines_of_tests_are_wider_than_120_columns():
    """A table of cases may be wider than code, now and then."""
    assert len(wide_lines("tests", 120)) <= 50


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Each text file under version control with its content; skips the test outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (raw := path.read_bytes()):
            yield name, raw.decode("utf-8", "replace")


def test_no_file_names_one_machine_or_a_package_registry():
    """Somebody else's checkout works: no absolute path of ours, no address to install from."""
    files = dict(tracked_texts())
    assert len(files) > 300
    found = [
        f"{name}:{number}: {what}"
        for name, text in files.items()
        if name != "tests/test_style.py"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in ONE_MACHINE.items()
        if re.search(pattern, line)
    ]
    assert not found, "\n".join(found)


# Files of the product and of the system, whose size nobody else decides, and where bounds are kept.
OWN_FILES = {
    "advisor/commands/demo.py",
    "advisor/commands/rules.py",
    "advisor/commands/wizard.py",  # the plan that it wrote
    "advisor/extras/jobs/pack.py",  # the texts beside it, and itself
    "advisor/ground/files.py",
    "advisor/ground/resources.py",
    "advisor/ground/yaml_files.py",
    "advisor/launch/failure_report.py",
    "advisor/launch/generation_server.py",  # the log of a child
    "advisor/methods/kernels.py",
    "advisor/probe/software.py",
    "advisor/probe/system.py",
    "advisor/ruleset/layers.py",
    "advisor/schema/build.py",
    "advisor/situation/catalogue.py",
}


def test_files_of_others_are_read_within_limits():
    """`bytes_of` and `text_of` of ground/files.py refuse what never ends, and what is too large."""
    whole = re.compile(r"\.read_(?:text|bytes)\(")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "advisor").rglob("*.py")
        if whole.search(path.read_text("utf-8"))
    }
    assert found == OWN_FILES
