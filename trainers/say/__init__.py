"""What is said while a stage runs: parts, waits, stops."""
