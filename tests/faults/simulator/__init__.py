"""Real store, launcher and records, a stand-in for training, and a disk that fails from a seed."""
