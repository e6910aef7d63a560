"""Builds the page as a folder of files: `python -m tools.site --out DIR`."""
