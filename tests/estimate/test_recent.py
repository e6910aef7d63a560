"""The runs published since 2025: which half a source is in."""

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
