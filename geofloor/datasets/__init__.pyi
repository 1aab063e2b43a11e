from ._concepts import load_concepts as load_concepts
from ._corpus import Document as Document
from ._corpus import load_local_corpus as load_local_corpus
from ._paper import load_paper_tables as load_paper_tables
from ._pile import pile_concepts as pile_concepts
from ._published_losses import load_published_losses as load_published_losses
from ._teacher import load_teacher as load_teacher
