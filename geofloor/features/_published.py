"""Read dictionaries that other libraries have published, as fitted autoencoders."""

from __future__ import annotations

import os

from geofloor._validation import check_choice, check_number, check_path
from geofloor.features._autoencoder import SparseAutoencoder
from geofloor.features._dictionary_files import find_weights, read_config, read_scaler, read_weights
from geofloor.features._dictionary_formats import FORMATS, Given, detect
from geofloor.features._dictionary_hub import fetch, is_repository
from geofloor.features._folding import check_shapes, fold


def load_autoencoder(
    path: str | os.PathLike[str],
    *,
    file: str | None = None,
    format: str = "auto",  # noqa: A002
    l0: int | None = None,
    scaling_factor: float | None = None,
    revision: str | None = None,
    device: str = "auto",
) -> SparseAutoencoder:
    r"""Load a published sparse autoencoder.

    Its reconstructions are those of the authors' own code. Its directions have unit norm, so that codes are in the
    units of the activations: those of the file times the norms of its directions.

    Parameters
    ----------
    path : str or path
        File, folder, or repository on the Hugging Face hub, such as ``"EleutherAI/sae-llama-3-8b-32x"``. Of a
        repository only the chosen file and the configuration beside it are fetched.
    file : str or None, default=None
        File or folder inside of `path`, such as ``"layers.10"``; needed if `path` holds several dictionaries.
    format : str, default="auto"
        ``"saelens"``, ``"sparsify"``, ``"dictionary_learning"``, ``"gemma_scope"`` (1 and 2), ``"qwen_scope"``,
        ``"llama_scope"`` (also Llamascopium), ``"openai"``, ``"goodfire"``, or ``"linear"`` for two linear layers with
        a ReLU. ``"auto"`` tells it from the tensors and the configuration.
    l0 : int or None, default=None
        Codes per row of TopK; None takes the file's.
    scaling_factor : float or None, default=None
        Factor on activations before the weights apply, for files that were trained on normalized activations and do
        not tell the factor.
    revision : str or None, default=None
        Branch, tag or commit of a repository; None means its main branch.
    device : str, default="auto"
        Device to encode on.

    Returns
    -------
    sae : SparseAutoencoder
        Fitted autoencoder. Its `source_` holds the model and the hook that the file names.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If a repository can't be reached.
    ValueError
        If the file is damaged, foreign or a pickle of more than tensors, if `path` holds several dictionaries, or if
        the dictionary has a part that this form can't express exactly: normalization of single rows, transcoders, GLU
        encoders, or codes that depend on other positions.

    Warns
    -----
    UserWarning
        If a file is known to have a threshold that was never set or is too large.

    See Also
    --------
    SparseAutoencoder.from_weights : Takes arrays.
    SparseAutoencoder.save : Writes ``format="saelens"``.

    Notes
    -----
    The weights of a file with encoder :math:`W`, biases :math:`b_e` and :math:`b_d`, threshold :math:`\theta` and
    directions :math:`D_j` of norm :math:`n_j` become :math:`n_j W_j`, :math:`n_j b_{e,j}`, :math:`n_j \theta_j` and
    :math:`D_j / n_j`. If inputs are not centered, :math:`W b_d` is added to :math:`b_e`. TopK chooses codes before
    they are multiplied by :math:`n_j`, which is `code_scale_` then. A gated encoder is a JumpReLU with the threshold
    :math:`b_{mag} - e^r b_{gate}`. All of this is exact, and computed in float64.

    Pickles are read with ``weights_only=True``, which runs no code.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from geofloor.features import load_autoencoder
    >>> rng = np.random.default_rng(0)
    >>> weights = {"encoder.weight": rng.normal(size=(32, 8)), "W_dec": rng.normal(size=(32, 8))}
    >>> weights |= {"encoder.bias": np.zeros(32), "b_dec": np.zeros(8)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({name: each.astype("float32") for name, each in weights.items()}, f"{folder}/sae.safetensors")
    ...     with open(f"{folder}/cfg.json", "w") as file:
    ...         _ = file.write('{"k": 4, "num_latents": 32, "d_in": 8}')
    ...     sae = load_autoencoder(folder)
    >>> sae.activation_, sae.l0_, sae.transform(rng.normal(size=(5, 8))).shape
    ('topk', 4, (5, 32))
    """
    local = check_path("path", path)
    if file is not None:
        file = os.fspath(check_path("file", file))
    check_choice("format", format, ("auto", *FORMATS))
    if l0 is not None:
        l0 = check_number("l0", l0, 1, whole=True)
    if scaling_factor is not None:
        scaling_factor = check_number("scaling_factor", scaling_factor, 0, open_low=True)
    if is_repository(path):
        weights = fetch(str(path), file, revision)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} has no effect: path='{local}' is no repository; leave it out.")
    else:
        weights = find_weights(local, file)
    tensors, values = read_weights(weights)
    config = {**values, **read_config(weights)}
    name = "/".join([*local.parts[-2:], *weights.resolve().parts[-4:]])
    scale = read_scaler(weights) if scaling_factor is None else scaling_factor
    try:
        raw = FORMATS[detect(tensors, config, name) if format == "auto" else format](
            tensors, config, Given(l0, scale, name)
        )
        check_shapes(raw)
        folded = fold(raw)
    except ValueError as error:
        raise ValueError(f"'{weights}' can't be used: it {error}.") from error
    if scaling_factor is not None and raw.input_scale != scaling_factor:
        raise ValueError(
            f"scaling_factor={scaling_factor:g} has no effect: '{weights}' has no normalization; leave it out."
        )
    if l0 is not None and raw.k != l0:
        raise ValueError(f"l0={l0} has no effect: '{weights}' has activation={raw.activation!r}; leave it out.")
    return SparseAutoencoder._from_folded(folded, raw.activation, raw.k, dict(raw.source), device=device)
