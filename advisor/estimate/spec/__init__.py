"""Run specs as people and scripts write them, and the answer to each."""
