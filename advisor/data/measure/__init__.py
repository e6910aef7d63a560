"""What is in the data: lengths, findings, repeats, and whether it is enough."""
