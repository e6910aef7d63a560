"""Recorded outputs (tools/frozen)."""
