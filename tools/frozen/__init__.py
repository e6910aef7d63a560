"""Frozen outputs: what must stay equal, compared with an earlier commit."""
