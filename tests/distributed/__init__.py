"""Every strategy with every update and objective, and the same training on any number of processes."""
