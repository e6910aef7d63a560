"""Faults on purpose: real kills, damaged folders and fuzzed inputs. `python -m tests.faults` runs the
long form; docs/reliability.md says what is promised and shows its last table.
"""
