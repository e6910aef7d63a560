"""The fuzzer in short form, and every input that it once found."""

import os
import sys

import pytest

from tests.faults.fuzz.run import fuzz_chunk

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, and watches their processes"
)


@pytest.mark.slow
def test_no_mutated_input_brings_about_what_must_not_be(tmp_path, monkeypatch):
    """Six hundred mutated inputs of every kind: the right exit code, no traceback, nothing slow,
    nothing written elsewhere, no control character printed.
    """
    monkeypatch.setenv("ADVISE_FAULTS_KEPT", os.fspath(tmp_path))
    rows = fuzz_chunk(1, 600)
    assert sum(row.count for row in rows) == 600
    assert [f"{row.objective}: {row.note}" for row in rows if not row.survived] == []
