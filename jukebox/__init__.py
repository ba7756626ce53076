"""Jukebox: a hierarchical VQ-VAE with transformer priors over its codes (arXiv:2005.00341)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jukebox.api import Model, Song, Sung, load

__version__ = "0.1.0"
__all__ = ["Model", "Song", "Sung", "load"]


def __getattr__(name: str) -> Any:
    """The public names (jukebox/api.py) are loaded when they are first asked for: `import jukebox` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'jukebox' has no attribute {name!r}")
    from jukebox import api

    return getattr(api, name)
