"""Group Turn Policy Optimization (GTPO, arXiv 2511.14846) for multi-turn reasoning with a Python tool."""

__version__ = "0.1.0"
