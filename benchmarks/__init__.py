"""`python -m benchmarks [NAME]`: side by side, one runner, one table; no test asserts times."""
