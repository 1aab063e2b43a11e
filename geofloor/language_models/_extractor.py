"""From texts or tokens to activations of a language model."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._set_output import _get_output_config
from transformers import PreTrainedModel

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.atomic import check_space, check_writable
from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.processes import join_processes
from geofloor._training.weights import model_sha256
from geofloor._validation import check_choice, check_number, check_object, check_path
from geofloor.language_models._blocks import check_layers, find_blocks, resolve_layers
from geofloor.language_models._extraction import write_stores
from geofloor.language_models._hook_names import OUTPUTS, output_module
from geofloor.language_models._inputs import InputReader, Window
from geofloor.language_models._loading import (
    check_model_kwargs,
    is_name,
    load_base_model,
    load_tokenizer,
    model_options,
    naming,
)
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._positions import Positions, check_exclude_tokens
from geofloor.language_models._residual_stream import ResidualStream
from geofloor.language_models._store import MANIFEST, STORE_DTYPES, ActivationStore, check_folder
from geofloor.language_models._token_rows import ending_ids

_MODEL_DTYPES = ("auto", "float32", "float16", "bfloat16")


class ActivationExtractor(
    ShortReprMixin,
    SharedParametersMixin,
    PortablePickleMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Extract activations of a language model at one block or several, one row per token.

    By default these are the residual stream after the block. The forward pass stops after the last of these blocks.
    Sequences of about the same length share a batch, and activations are streamed. Nothing is learned from data: `fit`
    loads and checks the model, and `transform` calls it first.

    Parameters
    ----------
    model : PreTrainedModel, str or path-like
        A causal language model or encoder of ``transformers``, or the name on the hub or the folder of one, which is
        loaded without its head. An object is neither moved to another device nor converted, and its training mode is
        restored.
    layer : int or list of int
        Index of the block, from 0; negative indices count from the last block. The Notes compare this with the
        numbering of other libraries. With a list, one forward pass per batch reads all of these blocks, and
        `transform`, `iter_batches` and `transform_to_store` give a dict by block, even for a list of one.
    output : {"residual", "mlp", "attention"}, default="residual"
        The residual stream after the block, or what its MLP or its attention adds to the residual stream.
    tokenizer : PreTrainedTokenizerBase, str, path-like or None, default=None
        Tokenizer for texts, used with the special tokens that it adds by default. With None, a model given by name
        brings its own. Token ids need no tokenizer.
    text_column : str, default="text"
        Column of a ``datasets.Dataset`` that holds the text. A column ``input_ids`` takes precedence.
    pooling : {None, "mean", "last"}, default=None
        With None, one row per token. With ``"mean"`` or ``"last"``, one row per sequence, made of the positions left
        after `skip_first` and `exclude_tokens`.
    skip_first : int, default=1
        Positions left out at the start of each sequence. In most language models the first token is an attention
        sink: its norm can be hundreds of times that of any other token and would dominate every second moment. Use 0
        for encoders that pool into their first token.
    exclude_tokens : "special", list of int or None, default=None
        Tokens whose positions are left out as well: ids, or ``"special"`` for those of the tokenizer. The model still
        reads them.
    max_length : int or None, default=512
        Sequences are cut to this many tokens, and to the number of positions of the model. Use `token_blocks` to
        keep all of longer texts.
    batch_size : int, default=8
        Sequences per forward pass.
    device : str, default="auto"
        Device for a model given by name: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``. A model
        object runs where it is, and another device is an error.
    dtype : {"float32", "float16", "bfloat16", "auto"}, default="float32"
        Precision for a model given by name; ``"auto"`` keeps that of its files. The activations are always float32.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained``, such as ``{"revision": "step1000"}`` or
        ``{"gguf_file": "model.Q4_1.gguf"}``. The tokenizer gets those that it knows. They override `device` and
        `dtype`.
    verbose : int, default=0
        Above 0, progress in sequences is written to standard error.

    Attributes
    ----------
    model_ : PreTrainedModel
        The base model, without its head. Pickles leave it out if it was loaded by name.
    tokenizer_ : PreTrainedTokenizerBase or None
        The tokenizer.
    n_layers_ : int
        Number of blocks.
    layer_ : int or list of int
        Index of the block, from 0. A list if `layer` is one, in the same order. The dicts have these keys.
    block_name_ : str or list of str
        Name of that block within `model_`, such as ``"layers.3"``.
    module_name_ : str or list of str
        Name of the module whose output is read: the block, or with `output` one inside, such as ``"layers.3.mlp"``.
    exclude_tokens_ : list of int
        Ids of the excluded tokens, sorted.
    max_length_ : int or None
        Tokens that a sequence is cut to.
    device_ : str
        Device that `model_` takes its input on.

    See Also
    --------
    ActivationStore : Activations on disk.
    token_blocks : Cut texts into blocks of equal length.
    SparseAutoencoder : The usual next step.

    Notes
    -----
    With :math:`h_0` the embedding, a residual network is :math:`h_{l+1} = h_l + f_l(h_l)`, and the extractor gives
    :math:`h_{layer + 1}`. In ``transformers`` this is ``hidden_states[layer + 1]`` with
    ``output_hidden_states=True``, except after the last block: there ``hidden_states[-1]`` includes the model's final
    normalization, and the residual stream does not. "Layer 12" counted from 0, as here, in TransformerLens'
    ``blocks.12.hook_resid_post`` and in SAELens, is the output of the thirteenth block, ``hidden_states[13]``. For
    ``hidden_states[12]`` use ``layer=11``.

    Published dictionaries name the place that they were trained on. `parse_hook
    <geofloor.language_models.parse_hook>` reads these names:

    ====================================================  =======  ===============
    name                                                  `layer`  `output`
    ====================================================  =======  ===============
    ``blocks.L.hook_resid_post``                          L        ``"residual"``
    ``blocks.L.hook_resid_pre``                           L − 1    ``"residual"``
    ``blocks.L.hook_mlp_out``                             L        ``"mlp"``
    ``blocks.L.hook_attn_out``                            L        ``"attention"``
    ``model.layers.L.output``                             L        ``"residual"``
    ``model.layers.L.input``                              L − 1    ``"residual"``
    ``model.layers.L.post_feedforward_layernorm.output``  L        ``"mlp"``
    ``layers.L``                                          L        ``"residual"``
    ``layers.L.mlp``                                      L        ``"mlp"``
    ``layers.L.self_attn``                                L        ``"attention"``
    ``resid_post_layer_L``                                L        ``"residual"``
    ``mlp_out_layer_L``                                   L        ``"mlp"``
    ``attn_out_layer_L``                                  L        ``"attention"``
    ====================================================  =======  ===============

    The names are those of TransformerLens and SAELens, of ``transformers`` and Gemma Scope, of sparsify, and of
    dictionary_learning. Not read are ``blocks.L.hook_resid_mid`` and the input of attention's output projection:
    ``blocks.L.attn.hook_z``, or ``self_attn.o_proj.input`` in Gemma Scope. In families that normalize the output of the
    MLP or of attention before it is added (Gemma 2 and 3, OLMo 2, GLM-4), it is read after that normalization, as in
    TransformerLens. Blocks without such a module of its own (the MLP of OPT) and modules that add the residual stream
    themselves (BLOOM, MPT, BERT) are refused.

    The activations of a sequence depend on the rest of its batch by rounding only. The same input and settings give
    the same bits on the same CPU with the same number of threads. A block's activations have the same bits whether it
    is extracted alone or with others.

    With a list of blocks, `get_feature_names_out` names the columns of each array; all arrays have the same names. A
    dict is no table, so `transform` refuses ``set_output(transform="pandas")``.

    `sklearn.base.clone` shares the model object instead of copying it, since it is never changed. Threads may share
    it, too; its training mode is off in all of them while one extracts.

    Examples
    --------
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from geofloor import ActivationExtractor
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    ... )
    >>> tokens = np.arange(60).reshape(4, 15) % 32
    >>> extractor = ActivationExtractor(GPTNeoXForCausalLM(config), layer=1)
    >>> extractor.fit_transform(tokens).shape
    (56, 16)
    >>> extractor.set_params(pooling="mean").transform(tokens).shape
    (4, 16)
    >>> both = extractor.set_params(layer=[0, -1]).transform(tokens)
    >>> {layer: activations.shape for layer, activations in both.items()}
    {0: (4, 16), 2: (4, 16)}
    """

    _shared_parameters = ("model", "tokenizer")

    def __init__(
        self,
        model: Any,
        layer: int | Sequence[int],
        *,
        output: str = "residual",
        tokenizer: Any = None,
        text_column: str = "text",
        pooling: str | None = None,
        skip_first: int = 1,
        exclude_tokens: Any = None,
        max_length: int | None = 512,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "float32",
        model_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
    ):
        self.model = model
        self.layer = layer
        self.output = output
        self.tokenizer = tokenizer
        self.text_column = text_column
        self.pooling = pooling
        self.skip_first = skip_first
        self.exclude_tokens = exclude_tokens
        self.max_length = max_length
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.model_kwargs = model_kwargs
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> ActivationExtractor:
        """Load the model and check it against the parameters.

        Parameters
        ----------
        X : object, default=None
            Ignored.
        y : None
            Ignored.

        Returns
        -------
        self : ActivationExtractor
            The extractor.

        Raises
        ------
        TypeError
            If model or tokenizer is an object of another kind.
        ValueError
            If a parameter is out of its range, `layer` is empty or names a block twice, the model has no such layer or
            output or no list of blocks, the tokenizer has more tokens than the model, or `exclude_tokens` needs one and
            there is none.
        MemoryError
            If the device has too little memory; the message names what to lower.
        """
        # Plain integers, because small integers of NumPy overflow.
        self._skip_first: int = check_number("skip_first", self.skip_first, 0, whole=True)
        self._batch_size: int = check_number("batch_size", self.batch_size, 1, whole=True)
        if self.max_length is not None:
            check_number("max_length", self.max_length, self._skip_first + 1, whole=True)
        output = check_choice("output", self.output, OUTPUTS)
        check_choice("pooling", self.pooling, (None, "mean", "last"))
        check_choice("dtype", self.dtype, _MODEL_DTYPES)
        indices = check_layers(self.layer)
        resolve_device(self.device)
        check_model_kwargs(self.model_kwargs, by_name=self._by_name())

        source = (self.model, self.tokenizer, self.device, self.dtype, copy.copy(self.model_kwargs))
        changed = getattr(self, "_source", None) != source  # a search over layers loads the model once
        if changed:
            self.model_: Any = self._load_model()
            self.tokenizer_: Any
            self.tokenizer_, self._why_no_tokenizer = load_tokenizer(self.tokenizer, self.model, self.model_kwargs)
            self._suspects: set[int] = ending_ids(self.model_.config.get_text_config(), self.tokenizer_)
        config = self.model_.config.get_text_config()
        self._blocks: str
        self.n_layers_: int
        self._blocks, self.n_layers_ = find_blocks(self.model_)
        self._layers: list[int] = resolve_layers(indices, self.n_layers_)
        names = [f"{self._blocks}.{layer}" for layer in self._layers]
        self._modules: dict[int, str] = {
            layer: output_module(self.model_, f"{self._blocks}.{layer}", output) for layer in self._layers
        }
        modules = list(self._modules.values())
        # Any, because the caller knows which of the two it is.
        self.layer_: int | Any = self._layers[0] if "layer" in indices else list(self._layers)
        self.block_name_: str | Any = names[0] if "layer" in indices else names
        self.module_name_: str | Any = modules[0] if "layer" in indices else modules
        embedding = (self.model_ if self._by_name() else self.model).get_input_embeddings().weight
        self._n_vocabulary: int = embedding.shape[0]
        self.device_: str = str(embedding.device)
        if self.tokenizer_ is not None and len(self.tokenizer_) > self._n_vocabulary:
            raise ValueError(
                f"tokenizer does not match the model: it has {len(self.tokenizer_)} tokens, and the model embeds "
                f"{self._n_vocabulary}; use the tokenizer that the model was trained with."
            )
        self.exclude_tokens_: list[int] = check_exclude_tokens(
            self.exclude_tokens, self._n_vocabulary, self.tokenizer_, self._why_no_tokenizer
        )
        limits = [self.max_length, getattr(config, "max_position_embeddings", None)]
        limits.append(getattr(self.tokenizer_, "model_max_length", None))
        known = [int(limit) for limit in limits if limit is not None and 0 < limit < sys.maxsize]
        self.max_length_: int | None = min(known, default=None)
        self._n_features_out: int = config.hidden_size
        if changed or getattr(self, "_probed_output", None) != output:
            # Raises for a model that cannot be used.
            self._residual_stream(probe=True).rows([np.zeros(2, dtype=np.int64)], self._layers)
            self._source, self._probed_output = source, output
        return self

    def transform(self, X: Any) -> np.ndarray | pd.DataFrame | Any:
        """Extract the activations of all tokens, or of all sequences with `pooling`, into memory.

        Parameters
        ----------
        X : list, array or Series of str; int array of shape (n_sequences, seq_len); list of 1-D int \
                sequences; or datasets.Dataset or IterableDataset
            Texts or token ids. A dataset is read row by row. Sequences of token ids have no padding, and may differ
            in length.

        Returns
        -------
        activations : ndarray of shape (n_tokens, d_model) or (n_sequences, d_model), float32; or dict of int to ndarray
            Rows in the order of the tokens in `X`, without skipped positions and excluded tokens. A dict by block if
            `layer` is a list.

        Raises
        ------
        ValueError
            If `X` is empty, of another kind, leaves no position, needs a tokenizer and there is none, or has token
            ids that the model does not embed; if activations are not finite; or if `layer` is a list and
            `set_output` asks for a table.
        """
        self.fit()
        container = _get_output_config("transform", self)["dense"]
        if isinstance(self.layer_, list) and container != "default":
            raise ValueError(
                f"layer={self.layer!r} gives a dict of arrays, and set_output asks for transform={container!r}; call "
                "set_output(transform='default'), or give one layer as an int."
            )
        pieces: dict[int, list[np.ndarray]] = {layer: [] for layer in self._layers}
        for batch in self._stream(self._windows(X), self._layers):
            for layer, rows in batch.items():
                pieces[layer].append(rows)
        activations = {layer: np.concatenate(pieces.pop(layer)) for layer in self._layers}
        if isinstance(self.layer_, list):
            return activations
        by_token = isinstance(X, pd.Series) and self.pooling is None
        if by_token and container == "pandas":
            return pd.DataFrame(activations[self.layer_])  # the index of X counts sequences, not tokens
        return activations[self.layer_]

    def iter_batches(self, X: Any) -> Iterator[np.ndarray | Any]:
        """Stream the rows of `transform`, in the same order.

        Parameters
        ----------
        X : texts, token ids or dataset
            As in `transform`. Input in memory is checked to its end before the first forward pass.

        Yields
        ------
        activations : ndarray of shape (n_rows, d_model), float32; or dict of int to ndarray
            At least one row, and at most about 128 MiB or one batch per block. A dict by block if `layer` is a list:
            the same tokens after each block.
        """
        self.fit()
        batches, layer = self._stream(self._windows(X), self._layers), self.layer_
        return batches if isinstance(layer, list) else (batch[layer] for batch in batches)

    def _stream(self, windows: Iterator[Window], layers: list[int]) -> Iterator[dict[int, np.ndarray]]:
        stream = self._residual_stream()
        for window in windows:
            yield from stream.activations(window, layers)

    def transform_to_store(
        self, X: Any, path: str | os.PathLike[str], *, shard_tokens: int = 65_536, dtype: str = "float32"
    ) -> ActivationStore | Any:
        """Stream the rows of `transform` to a folder instead of into memory.

        After an interruption the same call continues after the last complete shard, to the bits of an uninterrupted
        run. A finished store stays as it is. While one job writes to a folder, the same call in another job waits.

        Under ``accelerate launch`` or ``torchrun`` all processes must make the same call. Each computes its share of
        the shards, and all return the same store. Its bytes are those of one process, on CPUs with the same number of
        threads. Any number of processes can resume it.

        Parameters
        ----------
        X : texts, token ids or dataset
            As in `transform`.
        path : path-like
            Folder for the store; made if needed. If `layer` is a list, each block has a store of its own in a
            subfolder: ``layer-08`` for block 8.
        shard_tokens : int, default=65_536
            Rows per file. One shard per block is held in memory.
        dtype : {"float32", "float16"}, default="float32"
            Stored precision. float16 halves the space; it has 11 significant bits and no number above 65,504.

        Returns
        -------
        store : ActivationStore or dict of int to ActivationStore
            The finished store. A dict by block if `layer` is a list.

        Raises
        ------
        ValueError
            As in `transform`, and if `path` holds a store made with other settings, from another input or by another
            model, or a damaged one. If several processes have different arguments, or don't see the same `path`.
        RuntimeError
            If another process failed; the message quotes its error.
        OSError
            If `path` can't be written, or the disk has too little space for the rows of an array of token ids.

        Notes
        -----
        An earlier store is recognized by its settings, by SHA-256 digests of all token ids and of the model's weights
        and configuration, and by computing its last batches again. All of its shards are verified.

        A block's store has the same bytes whether the block is extracted alone or with others. A call with a list
        therefore keeps finished stores in its subfolders and completes interrupted ones. A later call can resume one
        block alone.

        Each of several processes reads all of `X`. A model given by name runs on the device of its process. Beside
        each shard lies a file with its record until the store is finished.
        """
        shard_tokens = check_number("shard_tokens", shard_tokens, 1, 2**31 - 1, whole=True)
        check_choice("dtype", dtype, STORE_DTYPES)
        processes = join_processes(self.device)
        folders = self._folders(path)
        self._move(processes.device)
        windows = self._windows(X, quiet=not processes.is_main)
        processes.on_main(self._check_space, X, folders, dtype)
        name = self.model if self._by_name() else self.model.name_or_path
        weights = model_sha256(self.model_)

        def settings(layer: int) -> dict[str, Any]:
            return {
                "model": os.fspath(name or type(self.model).__name__),
                "model_sha256": weights,
                "layer": layer,
                "output": self.output,
                "n_layers": self.n_layers_,
                "skip_first": self._skip_first,
                "exclude_tokens": self.exclude_tokens_ or None,
                "pooling": self.pooling,
                "max_length": self.max_length_,
                "batch_size": self._batch_size,
                "shard_tokens": shard_tokens,
            }

        stores = write_stores(
            folders, windows, self._residual_stream(), settings, processes, dtype=dtype, shard_tokens=shard_tokens
        )
        return stores if isinstance(self.layer_, list) else stores[self.layer_]

    def _check_space(self, X: Any, folders: dict[int, tuple[Path, bool]], dtype: str) -> None:
        """Refuse stores of token blocks that the disk can't hold; the size of other inputs is unknown."""
        if not isinstance(X, np.ndarray) or X.ndim != 2 or self.exclude_tokens_:
            return
        length = min(X.shape[1], self.max_length_ or X.shape[1])
        n_rows = len(X) * (1 if self.pooling else max(length - self._skip_first, 0))
        unfinished = [folder for folder, finished in folders.values() if not finished]
        n_bytes = n_rows * self._n_features_out * np.dtype(dtype).itemsize
        check_space(unfinished, n_bytes, "give fewer tokens, dtype='float16' or another path")

    def _folders(self, path: Any) -> dict[int, tuple[Path, bool]]:
        """Fit, and return each block's folder and whether its store is finished.

        The path is checked before the model is loaded.
        """
        folder = check_path("path", path)
        if "layer" in check_layers(self.layer):
            checked = check_folder(folder)
            self.fit()
            return {self.layer_: checked}
        if not os.path.isdir(folder):
            check_writable("path", folder / MANIFEST)
        self.fit()
        return {layer: check_folder(folder / f"layer-{layer:02d}") for layer in self._layers}

    def _by_name(self) -> bool:
        return is_name(self.model)

    def _load_model(self) -> Any:
        if self._by_name():
            options = model_options(self.model_kwargs, self.dtype)
            device = resolve_device(self.device)
            with naming("model", self.model), memory_advice("set dtype='bfloat16' or device='cpu'"):
                model = load_base_model(os.fspath(self.model), **options)
                return model if "device_map" in options else model.to(device)
        check_object("model", self.model, PreTrainedModel, "give a transformers model, or the name or path of one")
        if self.device != "auto":
            wanted, actual = resolve_device(self.device), self.model.device
            if wanted.type != actual.type or wanted.index not in (None, actual.index):
                raise ValueError(
                    f"device={self.device!r}, but the model is on {str(actual)!r}; move it yourself with "
                    f"model.to({self.device!r}), or use device='auto'."
                )
        return self.model.base_model

    def _move(self, device: torch.device | None) -> None:
        """Move a model given by name to the device of this process, if there are several."""
        by_map = "device_map" in model_options(self.model_kwargs, self.dtype)
        if device is not None and self._by_name() and not by_map and self.device_ != str(device):
            self.model_.to(device)
            self.device_ = str(device)

    def _windows(self, X: Any, *, quiet: bool = False) -> Iterator[Window]:
        """Check `X`, in memory to its end, and return an iterator over its windows."""
        return InputReader(
            tokenizer=self.tokenizer_,
            why_no_tokenizer=self._why_no_tokenizer,
            n_vocabulary=self._n_vocabulary,
            text_column=self.text_column,
            max_length=self.max_length_,
            positions=self._positions(),
            batch_size=self._batch_size,
            d_model=self._n_features_out,
            suspects=set() if quiet else self._suspects.difference(self.exclude_tokens_),
            verbose=0 if quiet else self.verbose,
        ).windows(X)

    def _positions(self) -> Positions:
        return Positions(self._skip_first, self.exclude_tokens_, self.pooling is not None)

    def _residual_stream(self, *, probe: bool = False) -> ResidualStream:
        return ResidualStream(
            model=self.model_,
            modules=self._modules,
            width=self._n_features_out,
            n_vocabulary=self._n_vocabulary,
            device=self.device_,
            positions=Positions(0) if probe else self._positions(),
            pooling=self.pooling,
            batch_size=self._batch_size,
            remedy=f"lower batch_size={self._batch_size} or max_length={self.max_length}",
        )

    def _not_pickled(self) -> Collection[str]:
        return ("_source", "model_", "tokenizer_") if self._by_name() else ("_source",)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False  # two-dimensional input holds token ids, not features
        tags.transformer_tags.preserves_dtype = []
        return tags
