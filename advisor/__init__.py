"""Finetune advisor: which fine-tuning method to use, why, and one file that runs it."""

__version__ = "0.1.0"
