"""Data that comes with the library, or that every installation has."""

from geofloor.datasets._corpus import Document, load_local_corpus

__all__ = ["Document", "load_local_corpus"]
