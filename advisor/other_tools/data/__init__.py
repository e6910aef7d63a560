"""The data sets that a configuration names; one module a tool, with `read_data`."""
