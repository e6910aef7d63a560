"""JSON Schemas of every file that people write, made from the shapes that the readers check and
from the facts, tables and methods that are loaded.

They are built into the wheel and by `advise rules schema`, for editors and scripts; `advise` itself
reads none of them.
"""
