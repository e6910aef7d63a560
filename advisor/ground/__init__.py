"""What everything else stands on: values, units, errors, files, the shipped resources and strict
YAML.
"""
