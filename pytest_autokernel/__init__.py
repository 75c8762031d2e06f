"""A judge for machine-written GPU kernels, as a pytest plugin."""

__version__ = "0.1.0"
