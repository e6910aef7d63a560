"""What reads another tool's classes, under the Python of an environment that holds the tool.

These modules import the standard library and that tool alone.
"""
