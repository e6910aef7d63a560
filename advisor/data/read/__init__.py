"""A data path as files, and files as raw rows."""
