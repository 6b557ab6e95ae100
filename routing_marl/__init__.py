"""Routing networks as a multi-agent game (Rosenbaum, Klinger and Riemer, arXiv 1711.01239).

Importing this package is instant: torch is loaded by the modules that need it.
"""

__version__ = "0.1.0"
