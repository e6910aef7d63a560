"""The model as it is loaded: weights, attention, kernels, experts."""
