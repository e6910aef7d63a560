"""Side-by-side measurements: `python -m benchmarks [NAME]`. One runner, one table; tests never
assert wall time.
"""
