"""The tools that `benchmarks.peers` compares: their rows, their commands, and what they log."""
