"""Where the reward of an answer comes from."""
