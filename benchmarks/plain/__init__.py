"""The trainings of `benchmarks.gpu` by minimal scripts of other libraries.

Each takes its settings as JSON in its only argument, and prints one JSON object in its last line.
"""
