"""Data that comes with the library, or that every installation has."""

from geofloor.datasets._concepts import load_concepts, pile_concepts
from geofloor.datasets._corpus import Document, load_local_corpus
from geofloor.datasets._paper import load_paper_tables
from geofloor.datasets._teacher import load_teacher

__all__ = ["Document", "load_concepts", "load_local_corpus", "load_paper_tables", "load_teacher", "pile_concepts"]
