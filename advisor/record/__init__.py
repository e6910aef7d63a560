"""The record of a run: run.json as values, its files, and the verdict on it."""
