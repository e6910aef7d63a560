"""Base against tuned: losses, generated answers, rewards, and checks on what was saved."""
