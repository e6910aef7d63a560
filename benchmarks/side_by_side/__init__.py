"""The tools that `benchmarks.training` compares: their rows, their commands, and what they log."""
