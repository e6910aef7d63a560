"""What tests of optional features share with those of the launcher."""

from tests.launch.conftest import shop

__all__ = ["shop"]
