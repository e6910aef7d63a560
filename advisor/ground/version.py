"""The version of the package: what `advise --version`, run records and the build read."""

__version__ = "0.9.0"
