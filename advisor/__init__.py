"""Finetune advisor: which fine-tuning method to use, why, and one file that runs it."""

from advisor.ground.version import __version__

__all__ = ["__version__"]
