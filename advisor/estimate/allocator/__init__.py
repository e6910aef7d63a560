"""PyTorch's caching allocator, simulated, and the cache that a run's steps leave in it."""
