"""The job of a stage: the plan's values, this machine, files that others may read."""
