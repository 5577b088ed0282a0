"""The version of this package; `pyproject.toml` reads it from here, and every saved file is stamped with it."""

__all__ = ["__version__"]

__version__ = "0.1.0.dev0"
