"""A stage from its first check to its judged result."""
