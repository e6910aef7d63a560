"""What tests of optional features share, with each other and with those of the launcher."""

from pathlib import Path

from tests.launch.conftest import shop

__all__ = ["shop", "write_program"]


def write_program(path: Path, text: str) -> Path:
    """A script of bash that can be started; returns its path."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path
