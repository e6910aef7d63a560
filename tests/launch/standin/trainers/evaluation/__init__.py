"""Stands in for the evaluations of the trainers."""
