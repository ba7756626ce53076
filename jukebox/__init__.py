"""Jukebox: a hierarchical VQ-VAE with transformer priors over its codes (arXiv:2005.00341)."""

__version__ = "0.1.0"
