"""Stands in for the tools of the trainers."""
