"""
How far floors depend on the dictionary
=======================================

The sparsity of a dictionary is a choice, and the floors of Eq. 2 follow it. This script learns six dictionaries of the
embedded teacher in one call, draws their floors as a band, and chooses a sparsity by the teacher's loss.
"""

# %%
# Six dictionaries
# ----------------
# Three sparsities and two seeds, on 20,000 tokens, take about a minute. Each dictionary is judged on text that it has
# not seen.

import warnings

import matplotlib.pyplot as plt
from sklearn.exceptions import ConvergenceWarning

from geofloor import ActivationExtractor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.displays import FloorBandDisplay
from geofloor.language_models import measure_band, token_blocks

teacher, layer = load_teacher(), 2
texts = (document.text for document in load_local_corpus("test"))
tokens = token_blocks(texts, teacher.tokenizer, length=128, max_blocks=200)
train, held_out = tokens[:160], tokens[160:]
extractor = ActivationExtractor(teacher.path, layer)
autoencoders = [SparseAutoencoder(1024, l0=l0, n_epochs=10, random_state=seed) for l0 in (8, 16, 32) for seed in (0, 1)]
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # training as short as this is only for illustration
    band = measure_band(
        autoencoders,
        extractor.transform(train),
        widths=[16, 32, 64, 96],
        held_out=extractor.transform(held_out),
        teacher=teacher.path,
        layer=layer,
        tokens=held_out,
    )
columns = ["l0", "seed", "explained_variance", "kl_recovered", "critical_width", "share_32", "share_64"]
print(band.frame(relative=True)[columns].round(3).to_string(index=False))

# %%
# The band
# --------
# Two seeds give almost the same curve. With twice the codes per token, the critical width is about 1.7 times as large,
# and a student of width 64 loses more.

FloorBandDisplay.from_band(band, range(1, 129))
plt.show()

# %%
# The choice
# ----------
# Of the settings that recover a share of the loss of mean ablation, take the sparsest.

chosen = band.choose(0.85)
low, high = band.critical_width_range()
print(f"L0 = {band.l0[chosen]:.0f}: d* = {band.critical_widths[chosen]:.0f}; over the band, {low:.0f} to {high:.0f}")
