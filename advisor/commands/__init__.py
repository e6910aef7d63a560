"""One file per command; session.py holds what they share."""
