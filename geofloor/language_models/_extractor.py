"""From texts or tokens to activations of a language model."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._set_output import _get_output_config
from transformers import PreTrainedModel

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.sealed import only_writer
from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.products import faster_linear, largest_matrix
from geofloor._training.weights import model_sha256
from geofloor._validation import check_choice, check_number, check_object
from geofloor.language_models._blocks import block_output, find_blocks
from geofloor.language_models._hooks import evaluating, hooked
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
from geofloor.language_models._store import MANIFEST, STORE_DTYPES, ActivationStore, StoreWriter, check_folder
from geofloor.language_models._token_rows import ending_ids

_MODEL_DTYPES = ("auto", "float32", "float16", "bfloat16")


class _BlockReached(Exception):  # noqa: N818 - it stops a forward pass that went well
    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden


class ActivationExtractor(
    ShortReprMixin,
    SharedParametersMixin,
    PortablePickleMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Extract the residual stream of a language model after one of its blocks, one row per token.

    The forward pass stops at that block. Sequences of about the same length share a batch, and activations are
    streamed. Nothing is learned from data: `fit` loads and checks the model, and `transform` calls it first.

    Parameters
    ----------
    model : PreTrainedModel, str or path-like
        A causal language model or encoder of ``transformers``, or the name on the hub or the folder of one, which is
        loaded without its head. An object is neither moved to another device nor converted, and its training mode is
        restored.
    layer : int
        Index of the block, from 0; negative indices count from the last block. The Notes compare this with the
        numbering of other libraries.
    tokenizer : PreTrainedTokenizerBase, str, path-like or None, default=None
        Tokenizer for texts, used with the special tokens that it adds by default. With None, a model given by name
        brings its own. Token ids need no tokenizer.
    text_column : str, default="text"
        Column of a ``datasets.Dataset`` that holds the text. A column ``input_ids`` takes precedence.
    pooling : {None, "mean", "last"}, default=None
        With None, one row per token. With ``"mean"`` or ``"last"``, one row per sequence, made of the positions left
        after `skip_first`.
    skip_first : int, default=1
        Positions left out at the start of each sequence. In most language models the first token is an attention
        sink: its norm can be hundreds of times that of any other token and would dominate every second moment. Use 0
        for encoders that pool into their first token.
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
    layer_ : int
        Index of the block, from 0.
    block_name_ : str
        Name of that block within `model_`, such as ``"layers.3"``.
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

    The activations of a sequence depend on the rest of its batch by rounding only. The same input and settings give
    the same bits on the same CPU with the same number of threads.

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
    """

    _shared_parameters = ("model", "tokenizer")

    def __init__(
        self,
        model: Any,
        layer: int,
        *,
        tokenizer: Any = None,
        text_column: str = "text",
        pooling: str | None = None,
        skip_first: int = 1,
        max_length: int | None = 512,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "float32",
        model_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
    ):
        self.model = model
        self.layer = layer
        self.tokenizer = tokenizer
        self.text_column = text_column
        self.pooling = pooling
        self.skip_first = skip_first
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
            If a parameter is out of its range, the model has no such layer or no list of blocks, or the tokenizer has
            more tokens than the model.
        MemoryError
            If the device has too little memory; the message names what to lower.
        """
        # Plain integers, because small integers of NumPy overflow.
        self._skip_first: int = check_number("skip_first", self.skip_first, 0, whole=True)
        self._batch_size: int = check_number("batch_size", self.batch_size, 1, whole=True)
        if self.max_length is not None:
            check_number("max_length", self.max_length, self._skip_first + 1, whole=True)
        check_choice("pooling", self.pooling, (None, "mean", "last"))
        check_choice("dtype", self.dtype, _MODEL_DTYPES)
        layer = check_number("layer", self.layer, whole=True)
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
        blocks, n_layers = find_blocks(self.model_)
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f"layer={layer} is not there: the model has {n_layers} blocks, 0 to {n_layers - 1} "
                f"(or -{n_layers} to -1)."
            )
        self.n_layers_: int = n_layers
        self.layer_: int = layer % n_layers
        self.block_name_: str = f"{blocks}.{self.layer_}"
        embedding = (self.model_ if self._by_name() else self.model).get_input_embeddings().weight
        self._takes_mask: bool = "attention_mask" in inspect.signature(self.model_.forward).parameters
        self._n_vocabulary: int = embedding.shape[0]
        self.device_: str = str(embedding.device)
        if self.tokenizer_ is not None and len(self.tokenizer_) > self._n_vocabulary:
            raise ValueError(
                f"tokenizer does not match the model: it has {len(self.tokenizer_)} tokens, and the model embeds "
                f"{self._n_vocabulary}; use the tokenizer that the model was trained with."
            )
        limits = [self.max_length, getattr(config, "max_position_embeddings", None)]
        limits.append(getattr(self.tokenizer_, "model_max_length", None))
        known = [int(limit) for limit in limits if limit is not None and 0 < limit < sys.maxsize]
        self.max_length_: int | None = min(known, default=None)
        self._n_features_out: int = config.hidden_size
        if changed:
            self._residual_stream([np.zeros(2, dtype=np.int64)])  # raises for a model that cannot be used
            self._source = source
        return self

    def transform(self, X: Any) -> np.ndarray | pd.DataFrame:
        """Extract the activations of all tokens, or of all sequences with `pooling`, into memory.

        Parameters
        ----------
        X : list, array or Series of str; int array of shape (n_sequences, seq_len); list of 1-D int \
                sequences; or datasets.Dataset or IterableDataset
            Texts or token ids. A dataset is read row by row. Sequences of token ids have no padding, and may differ
            in length.

        Returns
        -------
        activations : ndarray of shape (n_tokens, d_model) or (n_sequences, d_model), float32
            Rows in the order of the tokens in `X`, without skipped positions.

        Raises
        ------
        ValueError
            If `X` is empty, of another kind, leaves no position, needs a tokenizer and there is none, or has token
            ids that the model does not embed; or if activations are not finite.
        """
        activations = np.concatenate(list(self.iter_batches(X)))
        by_token = isinstance(X, pd.Series) and self.pooling is None
        if by_token and _get_output_config("transform", self)["dense"] == "pandas":
            return pd.DataFrame(activations)  # the index of X counts sequences, not tokens
        return activations

    def iter_batches(self, X: Any) -> Iterator[np.ndarray]:
        """Stream the rows of `transform`, in the same order.

        Parameters
        ----------
        X : texts, token ids or dataset
            As in `transform`. Input in memory is checked to its end before the first forward pass.

        Yields
        ------
        activations : ndarray of shape (n_rows, d_model), float32
            At least one row, and at most about 128 MiB or one batch.
        """
        self.fit()
        return self._stream(self._windows(X))

    def _stream(self, windows: Iterator[Window]) -> Iterator[np.ndarray]:
        for window in windows:
            yield from self._activations(window)

    def transform_to_store(
        self, X: Any, path: str | os.PathLike[str], *, shard_tokens: int = 65_536, dtype: str = "float32"
    ) -> ActivationStore:
        """Stream the rows of `transform` to a folder instead of into memory.

        After an interruption the same call continues after the last complete shard, to the bits of an uninterrupted
        run. A finished store stays as it is. While one process writes to a folder, the same call in another process
        waits.

        Parameters
        ----------
        X : texts, token ids or dataset
            As in `transform`.
        path : path-like
            Folder for the store; made if needed.
        shard_tokens : int, default=65_536
            Rows per file. One shard is held in memory.
        dtype : {"float32", "float16"}, default="float32"
            Stored precision. float16 halves the space; it has 11 significant bits and no number above 65,504.

        Returns
        -------
        store : ActivationStore
            The finished store.

        Raises
        ------
        ValueError
            As in `transform`, and if `path` holds a store made with other settings, from another input or by another
            model, or a damaged one.

        Notes
        -----
        An earlier store is recognized by its settings, by SHA-256 digests of all token ids and of the model's weights
        and configuration, and by computing its last batches again. All of its shards are verified.
        """
        shard_tokens = check_number("shard_tokens", shard_tokens, 1, 2**31 - 1, whole=True)
        check_choice("dtype", dtype, STORE_DTYPES)
        folder, finished = check_folder(path)
        self.fit()
        windows = self._windows(X)
        name = self.model if self._by_name() else self.model.name_or_path
        settings = {
            "model": os.fspath(name or type(self.model).__name__),
            "model_sha256": model_sha256(self.model_),
            "layer": self.layer_,
            "n_layers": self.n_layers_,
            "skip_first": self._skip_first,
            "pooling": self.pooling,
            "max_length": self.max_length_,
            "batch_size": self._batch_size,
            "shard_tokens": shard_tokens,
        }
        with contextlib.nullcontext() if finished else only_writer(folder / MANIFEST):
            writer = StoreWriter(folder, settings, width=self._n_features_out, dtype=dtype, shard_tokens=shard_tokens)
            for window in windows:
                if writer.wants(window):
                    for rows in self._activations(window):
                        writer.add(rows)
            return writer.finish()

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

    def _windows(self, X: Any) -> Iterator[Window]:
        """Check `X`, in memory to its end, and return an iterator over its windows."""
        return InputReader(
            tokenizer=self.tokenizer_,
            why_no_tokenizer=self._why_no_tokenizer,
            n_vocabulary=self._n_vocabulary,
            text_column=self.text_column,
            max_length=self.max_length_,
            skip_first=self._skip_first,
            pooled=self.pooling is not None,
            batch_size=self._batch_size,
            d_model=self._n_features_out,
            suspects=self._suspects,
            verbose=self.verbose,
        ).windows(X)

    def _activations(self, window: Window) -> Iterator[np.ndarray]:
        """Yield the rows of one window in input order, after sorting sequences by length to need little padding."""
        lengths = np.array([len(ids) for ids in window.sequences])
        used = np.flatnonzero(lengths > self._skip_first)
        counts = np.maximum(lengths - self._skip_first, 0) if self.pooling is None else np.ones_like(lengths)
        starts = np.cumsum(counts) - counts
        order = used[np.argsort(-lengths[used], kind="stable")]
        sorted_already = bool((np.diff(order) > 0).all())  # blocks of one length are
        ordered = np.empty((0 if sorted_already else window.n_rows, self._n_features_out), dtype=np.float32)
        end = 0
        while end < len(order):
            members = order[end : end + self._batch_size]
            if not self._takes_mask:  # it would read padding as text
                members = members[lengths[members] == lengths[members[0]]]
            end += len(members)
            rows = self._pool(*self._residual_stream([window.sequences[i] for i in members]))
            if not bool(torch.isfinite(rows).all()):
                indices = ", ".join(str(window.first + i) for i in sorted(members))
                raise ValueError(
                    f"activations after layer={self.layer_} of the batch of sequences X[{indices}] are not finite; "
                    "check the weights, or run the model in a dtype with more range, such as float32."
                )
            values = rows.to("cpu", torch.float32).numpy()
            if sorted_already:
                yield values
                continue
            for i, piece in zip(members, np.split(values, np.cumsum(counts[members])[:-1]), strict=True):
                ordered[starts[i] : starts[i] + counts[i]] = piece
        if len(ordered):
            yield ordered

    def _residual_stream(self, sequences: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states (n, seq_len, d_model) after the block, and the mask of real tokens."""
        model, config = self.model_, self.model_.config.get_text_config()
        lengths = np.array([len(ids) for ids in sequences])
        pad = getattr(config, "pad_token_id", None)  # some models count positions from it
        pad = pad if isinstance(pad, int) and 0 <= pad < self._n_vocabulary else 0
        ids = np.full((len(sequences), lengths.max()), pad, dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).to(self.device_)
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device_)}
        if self._takes_mask:
            inputs["attention_mask"] = mask.long()
        if "use_cache" in inspect.signature(model.forward).parameters:
            inputs["use_cache"] = False

        def stop(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            raise _BlockReached(block_output(output))

        # Hook and evaluation mode are set for each batch, since the caller may use the model between batches.
        try:
            with (
                evaluating(model),
                hooked(model.get_submodule(self.block_name_), stop),
                memory_advice(f"lower batch_size={self._batch_size} or max_length={self.max_length}"),
                torch.inference_mode(),
                faster_linear(ids.size, largest_matrix(model), inputs["input_ids"].device),
            ):
                model(**inputs)
        except _BlockReached as reached:
            hidden = reached.hidden
        else:
            raise ValueError(f"the forward pass of model type {config.model_type!r} never ran '{self.block_name_}'.")
        if hidden.shape != (*ids.shape, self._n_features_out):
            raise ValueError(
                f"'{self.block_name_}' of model type {config.model_type!r} gives hidden states of shape "
                f"{tuple(hidden.shape)}, not (n_sequences, seq_len, d_model) = {(*ids.shape, self._n_features_out)}."
            )
        return hidden, mask.to(hidden.device)

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return one row per token or per sequence, without padding and skipped positions."""
        with torch.inference_mode():
            hidden, mask = hidden[:, self._skip_first :], mask[:, self._skip_first :]
            if self.pooling is None:
                return hidden[mask]
            counts = mask.sum(1)
            if self.pooling == "last":
                return hidden[torch.arange(len(hidden), device=hidden.device), counts - 1]
            return hidden.float().masked_fill(~mask[..., None], 0.0).sum(1) / counts[:, None]

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
