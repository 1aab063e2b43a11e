"""The worth of a dictionary, in nats per token and in the field's other measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from geofloor._training.devices import memory_advice, to_device
from geofloor._training.progress import progress_bar
from geofloor._validation import check_choice, check_number, check_object
from geofloor.features._dictionary_sums import DictionarySums, check_methods, nearest_cosines
from geofloor.language_models._ablated_features import RowSizes
from geofloor.language_models._blocks import BlockSwap
from geofloor.language_models._dictionary_source import check_fit
from geofloor.language_models._divergence import Targets, row_losses, why_not_finite
from geofloor.language_models._extractor import ActivationExtractor
from geofloor.language_models._hook_names import OUTPUTS
from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._positions import Positions, tokens_to_exclude
from geofloor.language_models._row_activations import row_activations, too_short
from geofloor.language_models._sequence_means import mean_and_error
from geofloor.language_models._token_rows import TokenRows

_NO_NUMBERS = ("closest_latents", "output")
_PASSES = ("without", "sae", "zero", "mean")  # the intact teacher, and the three replacements


@dataclass(frozen=True, kw_only=True)
class DictionaryReport:
    """Measures of a dictionary on a text, under the names of SAEBench's core metrics where it has them.

    Losses are in nats per token, at the teacher's own temperature 1. Standard errors are over sequences, and NaN for
    a single one.

    Attributes
    ----------
    kl_div_with_sae : float
        KL divergence of the teacher with reconstructed activations from the intact teacher, in nats per token.
    kl_div_with_sae_error : float
        Standard error of `kl_div_with_sae`.
    kl_div_with_ablation : float
        KL divergence with activations of 0 (zero ablation), in nats per token.
    kl_div_with_mean_ablation : float
        KL divergence with the mean activation at every position (mean ablation), in nats per token. Not in SAEBench.
    kl_div_score : float
        Share of the loss recovered: 1 − `kl_div_with_sae` / `kl_div_with_ablation`; NaN if the ablation loses nothing.
    kl_div_score_error : float
        Standard error of `kl_div_score`.
    kl_div_score_above_mean : float
        Share of the loss recovered beyond the mean: 1 − `kl_div_with_sae` / `kl_div_with_mean_ablation`. Not in
        SAEBench.
    kl_div_score_above_mean_error : float
        Standard error of `kl_div_score_above_mean`.
    ce_loss_without_sae : float
        Cross-entropy of the intact teacher on the text, in nats per token.
    ce_loss_with_sae : float
        Cross-entropy with reconstructed activations, in nats per token.
    ce_loss_with_ablation : float
        Cross-entropy with zero ablation, in nats per token.
    ce_loss_with_mean_ablation : float
        Cross-entropy with mean ablation, in nats per token. Not in SAEBench.
    ce_loss_score : float
        Share of the cross-entropy recovered: (`ce_loss_with_ablation` − `ce_loss_with_sae`) /
        (`ce_loss_with_ablation` − `ce_loss_without_sae`); NaN if the ablation does not raise the cross-entropy.
    ce_loss_score_error : float
        Standard error of `ce_loss_score`.
    explained_variance : float
        1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², with one mean x̄ for all positions, as in `SparseAutoencoder.score`.
    l2_ratio : float
        Ratio of norms ‖x̂‖ / ‖x‖, averaged over positions.
    relative_reconstruction_bias : float
        E‖x̂‖² / E[x·x̂]. Below 1, reconstructions are too short: they would fit better if multiplied by its inverse.
    centered_reconstruction_bias : float
        The same about the mean x̄, E‖x̂ − x̄‖² / E[(x − x̄)·(x̂ − x̄)]. A large mean hides no shrinkage here. If all
        codes shrink alike, importances E[z²] are too small by its square. Not in SAEBench.
    l0 : float
        Latents firing per position, that is, with a code other than 0.
    frac_alive : float
        Share of latents that fired at least once in the `n_tokens` positions.
    freq_over_1_percent, freq_over_10_percent : float
        Share of latents firing on over 1% and over 10% of the positions.
    max_decoder_cosine_sim : float
        Largest cosine between the directions of two alive latents; NaN for fewer than two. SAEBench gives the largest
        cosine of each latent under this name.
    average_max_decoder_cosine_sim : float
        Largest cosine of an alive latent's direction with that of another, averaged over alive latents. SAEBench
        averages over all latents.
    closest_latents : tuple of (int, int) or None
        The two latents of `max_decoder_cosine_sim`. Not in SAEBench.
    n_latents : int
        Latents of the dictionary, alive or not.
    n_tokens : int
        Positions with replaced activations: the window of all rates and of `frac_alive`.
    n_sequences : int
        Sequences of the text.
    layer : int
        Block of the activations, from 0.
    output : str
        Output of the block, as in `ActivationExtractor <geofloor.ActivationExtractor>`.

    See Also
    --------
    dictionary_report : Measures a dictionary.
    geofloor.displays.DictionaryDisplay : Draws one report or several.
    """

    kl_div_with_sae: float
    kl_div_with_sae_error: float
    kl_div_with_ablation: float
    kl_div_with_mean_ablation: float
    kl_div_score: float
    kl_div_score_error: float
    kl_div_score_above_mean: float
    kl_div_score_above_mean_error: float
    ce_loss_without_sae: float
    ce_loss_with_sae: float
    ce_loss_with_ablation: float
    ce_loss_with_mean_ablation: float
    ce_loss_score: float
    ce_loss_score_error: float
    explained_variance: float
    l2_ratio: float
    relative_reconstruction_bias: float
    centered_reconstruction_bias: float
    l0: float
    frac_alive: float
    freq_over_1_percent: float
    freq_over_10_percent: float
    max_decoder_cosine_sim: float
    average_max_decoder_cosine_sim: float
    closest_latents: tuple[int, int] | None
    n_latents: int
    n_tokens: int
    n_sequences: int
    layer: int
    output: str = "residual"

    def frame(self) -> pd.DataFrame:
        """Return the measures as a table.

        For one row per dictionary, pass reports to ``pandas.DataFrame``.

        Returns
        -------
        frame : DataFrame
            One row per measure, with the columns

            - ``metric``: name, as above;
            - ``value``: number;
            - ``standard_error``: standard error over sequences, NaN where none is measured.
        """
        names = [each.name for each in fields(self)]
        numbers = [name for name in names if not name.endswith("_error") and name not in _NO_NUMBERS]
        errors = [getattr(self, f"{name}_error", float("nan")) for name in numbers]
        values = [float(getattr(self, name)) for name in numbers]
        return pd.DataFrame({"metric": numbers, "value": values, "standard_error": errors})


def dictionary_report(
    teacher: Any,
    layer: int,
    autoencoder: Any,
    tokens: Any,
    *,
    output: str = "residual",
    skip_first: int = 1,
    exclude_tokens: Any = None,
    batch_size: int = 8,
    pad_token_id: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    n_vocabulary: int | None = None,
    device: str = "auto",
    verbose: int = 0,
) -> DictionaryReport:
    r"""Measure a dictionary by the teacher's loss in nats per token with reconstructed activations.

    The activations of one block are replaced by their reconstruction, by zeros, and by their mean. The rest of the
    teacher then runs on each.

    Parameters
    ----------
    teacher : PreTrainedModel, str or path-like
        A causal language model of ``transformers``, or its name on the hub or its folder. It is not changed.
    layer : int
        Block of the activations that are replaced, from 0; negative indices count from the last.
    autoencoder : object
        A fitted `SparseAutoencoder`, or any object with two methods. ``transform`` turns activations of shape
        (n_tokens, d_model), float32, into codes of shape (n_tokens, n_latents): an array or a SciPy sparse matrix.
        ``inverse_transform`` turns codes into reconstructions. The directions are the rows of ``decoder_``, an array of
        shape (n_latents, d_model), if there is one. Otherwise they are the reconstructions of unit codes, minus that of
        codes of 0, which assumes that ``inverse_transform`` is linear with an offset.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        Token ids of text that the dictionary was not trained on.
    output : {"residual", "mlp", "attention"}, default="residual"
        Activations to replace: the residual stream after the block, or what its MLP or attention adds to it.
    skip_first : int, default=1
        Leading positions of each sequence left intact by all three replacements. Use the number left out of the
        dictionary's training data.
    exclude_tokens : "special", list of int or None, default=None
        Tokens whose positions are left intact by all three replacements and do not count: ids, or ``"special"`` for
        the special tokens of a teacher given by name.
    batch_size : int, default=8
        Sequences per forward pass.
    pad_token_id : int or None, default=None
        Token that pads sequences at their end. Its positions do not count.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name. It is loaded in float32 unless they hold a
        ``dtype``.
    n_vocabulary : int or None, default=None
        Number of tokens that count, the first ones. Rows of the unembedding beyond it, as those added to round up its
        size, get no probability. None counts all.
    device : str, default="auto"
        As in `DistilledStudent`. The dictionary gets NumPy arrays whatever the device.
    verbose : int, default=0
        Above 0, a progress bar is shown.

    Returns
    -------
    report : DictionaryReport
        The measures.

    Raises
    ------
    TypeError
        If `teacher` or `autoencoder` is an object of another kind.
    ValueError
        If teacher, layer, autoencoder and tokens do not fit each other, or a loss is not finite.
    MemoryError
        If the device has too little memory; the message names what to lower.

    Warns
    -----
    OutlierRowsWarning
        If a few activations, such as attention sinks, carry much of the variance.
    UserWarning
        If the dictionary explains less of the first activations than their mean does, or its `source_` names another
        layer, output or model.

    See Also
    --------
    SparseAutoencoder.score : Explained variance alone, without a teacher.
    AblationPredictor : Drops some features of a dictionary, and keeps the part that it does not explain.

    Notes
    -----
    The KL divergence is averaged over all positions except padding and excluded tokens, and the cross-entropy over
    those with a next token. Skipped positions lose nothing and count. SAEBench [1]_ replaces them as well, unless it is
    told to leave out special tokens; ``skip_first=0`` does the same. The reconstruction bias is that of [2]_, Eq. 10.

    Codes are computed in pieces of at most 16 million numbers, and cosines in blocks of 1,024 latents.

    References
    ----------
    .. [1] Karvonen et al. (2025), "SAEBench: A Comprehensive Benchmark for Sparse Autoencoders in Language Model
       Interpretability", arXiv:2503.09532.
    .. [2] Rajamanoharan et al. (2024), "Improving Dictionary Learning with Gated Sparse Autoencoders",
       arXiv:2404.16014.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import PCA
    >>> from geofloor import ActivationExtractor
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.language_models import dictionary_report
    >>> teacher = load_teacher()
    >>> tokens = np.random.default_rng(0).integers(2048, size=(8, 32))
    >>> components = PCA(64).fit(ActivationExtractor(teacher.path, layer=2).transform(tokens))
    >>> report = dictionary_report(teacher.path, 2, components, tokens)
    >>> report.n_tokens, report.l0
    (248, 64.0)
    >>> 0 < report.kl_div_with_sae < report.kl_div_with_mean_ablation
    True
    """
    layer = check_number("layer", layer, whole=True)
    check_choice("output", output, OUTPUTS)
    check_methods(autoencoder)
    batch_size = check_number("batch_size", batch_size, 1, whole=True)
    skip_first = check_number("skip_first", skip_first, 0, whole=True)
    place, module = load_language_model(teacher, model_kwargs, device)
    check_object("teacher", module, PreTrainedModel, "give a transformers model, or its name or path")
    model = LanguageModel(module, "the teacher", n_vocabulary=n_vocabulary)
    excluded = tokens_to_exclude(exclude_tokens, teacher, model_kwargs, model.n_tokens)
    rows = model.token_rows(tokens, "tokens", pad_token_id, excluded=excluded)
    if skip_first >= rows.length:
        raise too_short(skip_first, rows.length)
    extractor = ActivationExtractor(
        module,
        layer,
        output=output,
        skip_first=skip_first,
        exclude_tokens=excluded,
        max_length=None,
        batch_size=batch_size,
    ).fit()
    positions = Positions(skip_first, excluded)
    extractor._suspects = set()  # `token_rows` has warned of undeclared padding
    block = extractor.model_.get_submodule(extractor.module_name_)
    with (
        progress_bar("dictionary", total=len(rows), unit="sequence", verbose=verbose) as bar,
        evaluating(module),
        memory_advice(f"lower batch_size={batch_size}"),
    ):
        activations = row_activations(extractor, rows, skip_first=skip_first, batch_size=batch_size)
        sums, mean = _first_pass(autoencoder, extractor, activations)
        losses = _Losses(len(rows))
        with hooked(block, swap := BlockSwap()), torch.no_grad():
            for start in range(0, len(rows), batch_size):
                at = np.arange(start, min(start + batch_size, len(rows)))
                _add_losses(losses, model, swap, rows, at, sums, mean, positions, place)
                bar.update(len(at))
    return DictionaryReport(
        **losses.measures(),
        **_sum_measures(sums),
        **_cosine_measures(sums),
        n_latents=sums.n_latents,
        n_tokens=sums.n_tokens,
        n_sequences=len(rows),
        layer=extractor.layer_,
        output=output,
    )


def _first_pass(
    autoencoder: Any, extractor: ActivationExtractor, activations: Iterator[np.ndarray]
) -> tuple[DictionarySums, np.ndarray]:
    """Check the autoencoder on the first activations, and compute the mean of all."""
    first = next(activations)
    sums = DictionarySums(autoencoder, first)
    check_fit(sums.dictionary, extractor, first)
    total, n_tokens, sizes = np.zeros(first.shape[1]), 0, RowSizes()
    center = first.mean(axis=0, dtype=np.float64)
    for batch in chain([first], activations):
        total += batch.sum(axis=0, dtype=np.float64)
        n_tokens += len(batch)
        sizes.add(batch - center)
    sizes.warn("dominate the explained variance")
    return sums, total / n_tokens


class _Losses:
    """Sums of both losses over the positions of each sequence, for the intact teacher and each replacement."""

    def __init__(self, n_sequences: int) -> None:
        self.kl = {name: np.zeros(n_sequences) for name in _PASSES}
        self.cross_entropy = {name: np.zeros(n_sequences) for name in _PASSES}
        self.n_positions = np.zeros(n_sequences)
        self.n_labels = np.zeros(n_sequences)

    def add(
        self,
        name: str,
        at: np.ndarray,
        losses: tuple[torch.Tensor, torch.Tensor],
        counted: torch.Tensor,
        labeled: torch.Tensor,
    ) -> None:
        """Add the losses of some sequences, where they count (KL) or have a next token (cross-entropy)."""
        for sums, loss, where in zip((self.kl, self.cross_entropy), losses, (counted, labeled), strict=True):
            kept = torch.where(where, loss.view(where.shape), 0.0)
            sums[name][at] = kept.sum(dim=1, dtype=torch.float64).cpu().numpy()
            if not np.isfinite(sums[name][at]).all():
                raise ValueError(
                    "The loss of the teacher is not finite "
                    + (
                        "on tokens; check its weights, and leave out text with tokens of logit −inf."
                        if name == "without"
                        else f"with replaced activations; {why_not_finite(sums[name][at])}."
                    )
                )

    def measures(self) -> dict[str, Any]:
        """Average the losses, and compute the recovered shares."""
        found: dict[str, Any] = {}
        for name, ending in (("sae", "sae"), ("zero", "ablation"), ("mean", "mean_ablation")):
            found[f"kl_div_with_{ending}"], error = mean_and_error(self.kl[name], self.n_positions)
            found[f"ce_loss_with_{ending}"], _ = mean_and_error(self.cross_entropy[name], self.n_labels)
            if name == "sae":
                found["kl_div_with_sae_error"] = error
        intact = self.cross_entropy["without"]
        found["ce_loss_without_sae"], _ = mean_and_error(intact, self.n_labels)
        raised = {name: self.cross_entropy[name] - intact for name in ("sae", "zero")}
        for name, lost, ablated in (
            ("kl_div_score", self.kl["sae"], self.kl["zero"]),
            ("kl_div_score_above_mean", self.kl["sae"], self.kl["mean"]),
            ("ce_loss_score", raised["sae"], raised["zero"]),
        ):
            share, error = mean_and_error(lost, ablated) if ablated.sum() > 0.0 else (float("nan"), float("nan"))
            found[name], found[f"{name}_error"] = 1.0 - share, error
        return found


def _add_losses(
    losses: _Losses,
    model: LanguageModel,
    swap: BlockSwap,
    rows: TokenRows,
    at: np.ndarray,
    sums: DictionarySums,
    mean: np.ndarray,
    positions: Positions,
    device: torch.device,
) -> None:
    """Run the teacher on some sequences, intact and with each replacement."""
    batch = rows.take(at)
    counted = np.ones(batch.ids.shape, dtype=bool) if batch.mask is None else batch.mask
    labeled = np.zeros_like(counted)
    labeled[:, :-1] = counted[:, 1:]
    included = positions.included(batch.ids)
    counted, labeled = counted & included, labeled & included
    replaced = counted & positions.kept(batch.ids)
    losses.n_positions[at], losses.n_labels[at] = counted.sum(axis=1), labeled.sum(axis=1)
    ids, labels = to_device(batch.ids, device), to_device(np.roll(batch.ids, -1, axis=1).reshape(-1), device)
    of_kl, of_cross_entropy, places = (to_device(each, device) for each in (counted, labeled, replaced))
    swap.given = None
    targets = Targets(model.logits(ids), 1.0, keep=True)
    losses.add("without", at, row_losses(targets.source, targets, labels), of_kl, of_cross_entropy)
    whole = swap.seen
    states = whole[places].float().cpu().numpy()
    for name, values in (
        ("sae", sums.reconstruct(states, mean)),
        ("zero", np.zeros((1, states.shape[1]), dtype=np.float32)),
        ("mean", mean.astype(np.float32)[np.newaxis]),
    ):
        swap.given = whole.clone()
        swap.given[places] = to_device(values, device).to(whole.dtype)
        losses.add(name, at, row_losses(model.logits(ids), targets, labels), of_kl, of_cross_entropy)


def _sum_measures(sums: DictionarySums) -> dict[str, Any]:
    """Return the measures of reconstructions and codes."""
    return {
        "explained_variance": sums.explained_variance,
        "l2_ratio": sums.l2_ratio,
        "relative_reconstruction_bias": sums.relative_reconstruction_bias,
        "centered_reconstruction_bias": sums.centered_reconstruction_bias,
        "l0": sums.l0,
        "frac_alive": sums.share_firing_over(0.0),
        "freq_over_1_percent": sums.share_firing_over(0.01),
        "freq_over_10_percent": sums.share_firing_over(0.1),
    }


def _cosine_measures(sums: DictionarySums) -> dict[str, Any]:
    """Return the measures of the directions of alive latents."""
    alive = np.flatnonzero(sums.n_fired)
    if len(alive) < 2:
        none = float("nan")
        return {"max_decoder_cosine_sim": none, "average_max_decoder_cosine_sim": none, "closest_latents": None}
    cosines, neighbors = nearest_cosines(sums.directions(alive))
    first = int(cosines.argmax())
    pair = sorted(alive[[first, neighbors[first]]].tolist())
    return {
        "max_decoder_cosine_sim": float(cosines[first]),
        "average_max_decoder_cosine_sim": float(cosines.mean(dtype=np.float64)),
        "closest_latents": (pair[0], pair[1]),
    }
