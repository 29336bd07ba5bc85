"""epsc compiles Mixture-of-Experts layers into readable, proven, overlapped programs."""

__version__ = "0.1.0"
