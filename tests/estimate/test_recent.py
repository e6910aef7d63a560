"""The runs published since 2025: which half a source is in, and that the second stays unseen."""

import hashlib

import pytest
import yaml

from tools.generate import recent


@pytest.mark.parametrize("file", ["memory_2025", "speed_2025"])
def test_the_hash_of_its_name_puts_a_source_into_a_half(file):
    path = recent.ROOT / "tests" / "data_cases" / f"{file}.yaml"
    for name, source in yaml.safe_load(path.read_text())["sources"].items():
        odd = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2
        assert source["half"] == ("second" if odd else "first"), name


def test_the_second_half_is_not_printed_unless_told(capsys):
    assert recent.main(["second"]) == 2
    assert capsys.readouterr().out == ""
