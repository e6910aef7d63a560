"""The search: the fastest settings of a stage that fit the memory, the time and the money."""
