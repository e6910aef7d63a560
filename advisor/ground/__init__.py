"""The ground of every other room: values, units, errors, files, shapes and strict YAML."""
