"""The cache that a run's steps leave in PyTorch's allocator."""
