"""
From a published dictionary to floors
=====================================

Many teachers have a published dictionary. This script reads one from a file in the format of SAELens, and predicts the
floors of its teacher. The dictionary is that of the embedded teacher, written here first.
"""

# %%
# A file to read
# --------------
# Skip this part if there is a dictionary to download. It trains one on 20,000 tokens in about ten seconds, and writes
# it as SAELens does.

import tempfile
import warnings

import matplotlib.pyplot as plt
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from geofloor import ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.displays import FloorDisplay
from geofloor.features import load_autoencoder
from geofloor.language_models import token_blocks

teacher, layer = load_teacher(), 2
texts = (document.text for document in load_local_corpus("test"))
tokens = token_blocks(texts, teacher.tokenizer, length=128, max_blocks=200)
activations = ActivationExtractor(teacher.path, layer).transform(tokens)
folder = tempfile.mkdtemp()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # training as short as this is only for illustration
    SparseAutoencoder(1024, l0=16, n_epochs=10, random_state=0).fit(activations).save(folder, format="saelens")

# %%
# Read it, and predict floors
# ---------------------------
# Of a dictionary that was trained elsewhere, look at the explained variance first. It is negative if the activations
# are those of another block, another model or another normalization.

sae = load_autoencoder(folder)
print(f"{sae.activation_}, l0_={sae.l0_}, explained variance {sae.score(activations):.3f}")
floor = make_pipeline(FeatureStatistics(), FloorPredictor()).fit(sae.transform(activations))[-1]
for width, loss in zip((16, 32, 48, 64), floor.predict([16, 32, 48, 64]), strict=True):
    print(f"width {width}: floor {loss:.1f}, {loss / floor.predict([0])[0]:.0%} of all importance")

FloorDisplay.from_predictor(floor, range(1, 97))
plt.show()
