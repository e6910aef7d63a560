"""Objectives, updates and schemes as values, and the compositions made of them."""
