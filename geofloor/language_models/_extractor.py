"""From texts or tokens to activations of a language model."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import os
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._set_output import _get_output_config

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.atomic import atomic_path, check_writable, remove_left_behind
from geofloor._files.npy import map_npy, npy_header
from geofloor._files.schema import choice, fields, number, optional, text
from geofloor._files.sealed import count, lock_left, only_writer, read_sealed, sha256, write_sealed
from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.products import faster_linear, largest_matrix
from geofloor._training.progress import progress_bar
from geofloor._training.weights import model_sha256
from geofloor._validation import check_choice, check_number, check_object, check_path, plain_array, shown
from geofloor.language_models._dataset_columns import column_names, column_values, is_dataset, is_dataset_stream
from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._loading import load_base_model, naming
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._token_rows import PaddingWatch, ending_ids

_LOOK_AHEAD = 64  # batches that are sorted by length together
_WINDOW_BYTES = 2**27  # and no more than this of activations, since rows leave in the order they came
_MODEL_DTYPES = ("auto", "float32", "float16", "bfloat16")
_STORE_DTYPES = ("float32", "float16")
_FORMAT, _VERSION = "geofloor activations", 2
_EXTRACT_AGAIN = "remove the folder and extract the activations again"
_MANIFEST, _PARTIAL_MANIFEST = "manifest.json", "manifest.partial.json"
_OPEN_SHARDS = 64  # each open memory map holds a file descriptor
# What `from_pretrained` of a tokenizer shares with that of a model.
_SHARED_OPTIONS = (
    "cache_dir",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


# What texts and token ids come in


def _rows(X: Any, text_column: str) -> Iterable[Any]:
    """What `X` is made of: an iterable of texts or of token-id sequences, as yet unchecked."""
    if is_dataset(X) or is_dataset_stream(X):
        columns = column_names(X)
        for column in ("input_ids", text_column):
            if column in columns:
                return column_values(X, column)
        if not columns:
            return ()
        raise ValueError(
            f"X has the columns {columns}, and neither 'input_ids' nor text_column={text_column!r}; set text_column."
        )
    if hasattr(X, "__array__"):
        array = np.asarray(plain_array(X, "X"))
        if (array.ndim == 2 and array.dtype.kind in "iu") or (array.ndim == 1 and array.dtype.kind in "OUT"):
            return array
        raise ValueError(
            f"X is an array of shape {array.shape} and dtype {array.dtype}; token ids are integers of shape "
            "(n_sequences, seq_len), texts are strings of shape (n_sequences,)."
        )
    if isinstance(X, Sequence) and not isinstance(X, (str, bytes)):
        return X
    remedy = ""
    if isinstance(X, (str, bytes)):
        remedy = " Put the text in a list."
    elif isinstance(X, Mapping):
        remedy = " Choose one entry of the mapping, such as X['train'] or X['input_ids']."
    elif isinstance(X, Iterator):
        remedy = " An iterator can be read but once: use list(X), or datasets.IterableDataset.from_generator."
    raise ValueError(
        f"X is a {type(X).__name__}; give a list, array or Series of texts, token ids (a 2-D integer array or a list "
        f"of 1-D integer sequences), or a datasets.Dataset or IterableDataset.{remedy}"
    )


def _checked(rows: Iterable[Any], n_vocabulary: int) -> Iterator[str | np.ndarray]:
    """The rows, all texts or all int64 token ids of the vocabulary; an error names the row."""
    texts = None
    for index, row in enumerate(rows):
        is_text = isinstance(row, str)
        texts = is_text if texts is None else texts
        if is_text != texts:
            kind = "a text" if texts else "a sequence of token ids"
            raise ValueError(f"X[{index}]={row!r:.60} is not {kind}, as X[0] is; leave it out or convert it.")
        yield row if is_text else _token_ids(row, index, n_vocabulary)


def _token_ids(row: Any, index: int, n_vocabulary: int) -> np.ndarray:
    plain = plain_array(row, f"X[{index}]")
    try:
        ids = np.asarray(plain)
    except ValueError:  # ragged
        ids = np.empty((0, 0))
    if ids.ndim == 1 and ids.size == 0:
        return np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"X[{index}]={row!r:.60} is neither a text nor a 1-D sequence of integer token ids.")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= n_vocabulary:
        raise ValueError(
            f"X[{index}] holds the token id {lowest if lowest < 0 else highest}, outside the model's vocabulary of "
            f"0 to {n_vocabulary - 1}; use the tokenizer that the model was trained with."
        )
    return ids.astype(np.int64)


# Tokens to activations


class _BlockReached(Exception):  # noqa: N818 - it stops a forward pass that went well
    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden


class _Window(NamedTuple):
    """Sequences that are sorted into batches together."""

    first: int  # index in X of the first one
    sequences: list[np.ndarray]
    n_rows: int


def _find_blocks(model: Any) -> tuple[str, int]:
    """Name and length of the list of blocks of a transformers base model."""
    kind = getattr(model.config, "model_type", type(model).__name__)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"model is of type {kind!r}, an encoder and a decoder; pass one of them, such as model.get_encoder()."
        )
    n_blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_blocks
    ]
    # Lists inside a block (experts, say) are not lists of blocks.
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(found) != 1 or not n_blocks:
        what = f"the lists {found}, any of which may be" if found else "no list of modules that is"
        raise ValueError(
            f"model is of type {kind!r}, which has {what} its num_hidden_layers={n_blocks} blocks; pass the language "
            "model inside it, or a model of another type."
        )
    return found[0], n_blocks


class ActivationExtractor(
    ShortReprMixin,
    SharedParametersMixin,
    PortablePickleMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """The residual stream of a language model after one of its blocks, one row a token.

    The forward pass stops at that block, batches are made of sequences of about the same length,
    and everything streams. Nothing is learnt from data: `fit` loads and checks the model, and
    `transform` does so too where `fit` was not called.

    Parameters
    ----------
    model : PreTrainedModel, str or path-like
        A causal language model or encoder of ``transformers``, or a name on its hub or a folder to
        load one from (without its head). An object is left as it is: neither moved to another
        device nor converted, and in training mode again if it was.
    layer : int
        Index of the block whose output is taken, from 0; negative indices count from the last
        block. See Notes for how others number layers.
    tokenizer : PreTrainedTokenizerBase, str, path-like or None, default=None
        What turns texts into token ids, with the special tokens it adds on its own. With None, and a
        model given by name, the one of that name. Token ids need none.
    text_column : str, default="text"
        Column of a ``datasets.Dataset`` that holds the text. A column ``input_ids`` goes first.
    pooling : {None, "mean", "last"}, default=None
        None gives one row a token; ``"mean"`` and ``"last"`` give one row a sequence, of the positions
        that are left after `skip_first`.
    skip_first : int, default=1
        Positions left out at the start of each sequence. In most language models the first one is an
        attention sink, whose norm can be hundreds of times that of any other token and would dominate
        every second moment. For encoders that pool into their first token use 0.
    max_length : int or None, default=512
        Sequences are cut to this many tokens, and in any case to what the model has positions for.
        Use `token_blocks` to lose nothing of longer texts.
    batch_size : int, default=8
        Sequences a forward pass.
    device : str, default="auto"
        Where a model given by name runs: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or
        ``"mps"``. A model object runs where it is, and another device is an error.
    dtype : {"float32", "float16", "bfloat16", "auto"}, default="float32"
        Precision that a model given by name is loaded and run in; ``"auto"`` is that of its files. The
        activations are float32 in any case.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained``, such as ``{"revision": "step1000"}`` or
        ``{"gguf_file": "model.Q4_1.gguf"}``; the tokenizer gets those it knows. They win over `device`
        and `dtype`.
    verbose : int, default=0
        Above 0, progress in sequences is written to standard error.

    Attributes
    ----------
    model_ : PreTrainedModel
        The base model that runs, without its head. Left out of pickles if it was loaded by name.
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
    token_blocks : Blocks of equal length out of texts.
    SparseAutoencoder : What usually comes next.

    Notes
    -----
    With :math:`h_0` the embedding, a residual network is :math:`h_{l+1} = h_l + f_l(h_l)`, and this
    gives :math:`h_{layer + 1}`. In ``transformers`` that is ``hidden_states[layer + 1]`` with
    ``output_hidden_states=True``, except after the last block, where ``hidden_states[-1]`` has been
    through the final normalisation of the model and this has not. "Layer 12" of a model means, counted
    from 0 as here, as in TransformerLens' ``blocks.12.hook_resid_post`` or as in SAELens, the output of
    its thirteenth block, ``hidden_states[13]``; who reads ``hidden_states[12]`` wants ``layer=11``.

    The values for a sequence depend on what it is batched with, but for rounding only. The same input
    and settings give the same bits on the same CPU with the same number of threads.

    `sklearn.base.clone` shares the model object, which is never changed, in place of copying it. Threads may share it,
    too. Only its training mode is switched off for all of them while one extracts.

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
            Not looked at.
        y : None
            Ignored.

        Returns
        -------
        self : ActivationExtractor
            The extractor.

        Raises
        ------
        TypeError
            If model or tokenizer is another kind of object.
        ValueError
            If a parameter is out of its range, the model has no such layer or no list of blocks, or
            the tokenizer knows more tokens than the model.
        MemoryError
            If the device has too little memory; the message names what to lower.
        """
        # Plain integers: small ones of NumPy would wrap.
        self._skip_first: int = check_number("skip_first", self.skip_first, 0, whole=True)
        self._batch_size: int = check_number("batch_size", self.batch_size, 1, whole=True)
        if self.max_length is not None:
            check_number("max_length", self.max_length, self._skip_first + 1, whole=True)
        check_choice("pooling", self.pooling, (None, "mean", "last"))
        check_choice("dtype", self.dtype, _MODEL_DTYPES)
        layer = check_number("layer", self.layer, whole=True)
        resolve_device(self.device)
        if self.model_kwargs is not None:
            check_object("model_kwargs", self.model_kwargs, Mapping, "give a dict of arguments for from_pretrained")

        source = (self.model, self.tokenizer, self.device, self.dtype, copy.copy(self.model_kwargs))
        changed = getattr(self, "_source", None) != source  # going through the layers of a model loads it once
        if changed:
            self.model_: Any = self._load_model()
            self.tokenizer_: Any = self._load_tokenizer()
            self._suspects: set[int] = ending_ids(self.model_.config.get_text_config(), self.tokenizer_)
        config = self.model_.config.get_text_config()
        blocks, n_layers = _find_blocks(self.model_)
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
            self._residual_stream([np.zeros(2, dtype=np.int64)])  # a model that can't do it says so here
            self._source = source
        return self

    def transform(self, X: Any) -> np.ndarray | pd.DataFrame:
        """Activations of all tokens, or of all sequences with `pooling`, in memory.

        Parameters
        ----------
        X : list, array or Series of str; int array of shape (n_sequences, seq_len); list of 1-D int \
                sequences; or datasets.Dataset or IterableDataset
            Texts or token ids. A dataset is read row by row. Token ids come without padding, in sequences that
            may differ in length.

        Returns
        -------
        activations : ndarray of shape (n_tokens, d_model) or (n_sequences, d_model), float32
            Rows in the order of the tokens in `X`, without padding and skipped positions.

        Raises
        ------
        ValueError
            If `X` is empty, of another kind, leaves no position, needs a tokenizer that is not there or
            has token ids that the model does not embed; or if activations are not finite.
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
            As in `transform`. What is in memory is checked to its end before the first forward pass.

        Yields
        ------
        activations : ndarray of shape (n_rows, d_model), float32
            At least one row, and no more than about 128 MiB, or a single batch.
        """
        self.fit()
        return self._stream(self._windows(X))

    def _stream(self, windows: Iterator[_Window]) -> Iterator[np.ndarray]:
        for window in windows:
            yield from self._activations(window)

    def transform_to_store(
        self, X: Any, path: str | os.PathLike[str], *, shard_tokens: int = 65_536, dtype: str = "float32"
    ) -> ActivationStore:
        """Stream the rows of `transform` to a folder, so that they need not fit into memory.

        Interrupted, the same call goes on after the last complete shard, and gives the bits of a run
        that was never interrupted. On a finished store it changes nothing. While one process writes to a
        folder, others that call this for it wait.

        Parameters
        ----------
        X : texts, token ids or dataset
            As in `transform`.
        path : path-like
            Folder for the store; made if needed.
        shard_tokens : int, default=65_536
            Rows a file. One such shard is held in memory.
        dtype : {"float32", "float16"}, default="float32"
            What is stored. float16 halves the space, and has 11 significant bits and no number above
            65,504.

        Returns
        -------
        store : ActivationStore
            The finished store.

        Raises
        ------
        ValueError
            As in `transform`, and if `path` holds a store of other settings, of another input, of
            another model, or one that was altered.

        Notes
        -----
        What was stored before is recognized by the settings, by SHA-256 digests of all token ids and of
        all weights and the configuration of the model, and by computing the last stored batches again.
        Its shards are verified.
        """
        shard_tokens = check_number("shard_tokens", shard_tokens, 1, 2**31 - 1, whole=True)
        check_choice("dtype", dtype, _STORE_DTYPES)
        folder = check_path("path", path)
        finished = os.path.exists(folder / _MANIFEST) and not os.path.exists(folder / _PARTIAL_MANIFEST)
        finished = finished and not lock_left(folder / _MANIFEST)
        if not finished:
            check_writable("path", folder / _MANIFEST)
            remove_left_behind(folder / _PARTIAL_MANIFEST)
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
        with contextlib.nullcontext() if finished else only_writer(folder / _MANIFEST):
            writer = _StoreWriter(folder, settings, width=self._n_features_out, dtype=dtype, shard_tokens=shard_tokens)
            for window in windows:
                if writer.wants(window):
                    for rows in self._activations(window):
                        writer.add(rows)
            return writer.finish()

    def _by_name(self) -> bool:
        return isinstance(self.model, (str, os.PathLike))

    def _load_model(self) -> Any:
        from transformers import PreTrainedModel

        if self._by_name():
            options = dict(self.model_kwargs or {})
            if "torch_dtype" not in options:
                options.setdefault("dtype", self.dtype)
            device = resolve_device(self.device)
            with naming("model", self.model), memory_advice("set dtype='bfloat16' or device='cpu'"):
                model = load_base_model(os.fspath(self.model), **options)
                return model if "device_map" in options else model.to(device)
        check_object("model", self.model, PreTrainedModel, "give a transformers model, or the name or path of one")
        if self.model_kwargs:
            raise ValueError(f"model_kwargs={self.model_kwargs!r} are for a model given by name, not for an object.")
        if self.device != "auto":
            wanted, actual = resolve_device(self.device), self.model.device
            if wanted.type != actual.type or wanted.index not in (None, actual.index):
                raise ValueError(
                    f"device={self.device!r}, but the model is on {str(actual)!r}; move it yourself with "
                    f"model.to({self.device!r}), or use device='auto'."
                )
        return self.model.base_model

    def _load_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        self._why_no_tokenizer = "none was given"
        if self.tokenizer is not None and not isinstance(self.tokenizer, (str, os.PathLike)):
            if not (callable(self.tokenizer) and hasattr(self.tokenizer, "__len__")):
                raise TypeError(
                    f"tokenizer={shown(self.tokenizer)} is a {type(self.tokenizer).__name__}; give a tokenizer of "
                    "transformers, or its name or path."
                )
            return self.tokenizer
        if self.tokenizer is None and not self._by_name():
            return None
        options = {key: value for key, value in (self.model_kwargs or {}).items() if key in _SHARED_OPTIONS}
        if self.tokenizer is not None:
            options = {
                key: value for key, value in options.items() if key not in ("gguf_file", "revision", "subfolder")
            }
            with naming("tokenizer", self.tokenizer):
                return AutoTokenizer.from_pretrained(os.fspath(self.tokenizer), **options)
        name = os.fspath(self.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:  # token ids need none
            self._why_no_tokenizer = f"none could be loaded from model={name!r} ({error})"
            return None
        # Where there are no files, transformers may make a tokenizer of special tokens alone.
        if len(tokenizer) - len(tokenizer.get_added_vocab()) < 2:
            self._why_no_tokenizer = f"model={name!r} comes without a vocabulary"
            return None
        return tokenizer

    def _windows(self, X: Any) -> Iterator[_Window]:
        """Check what can be checked of `X` at once, and return its sequences in windows."""
        rows = _rows(X, self.text_column)
        total = len(X) if hasattr(X, "__len__") else None
        if total == 0:
            raise ValueError("X is empty: it holds no sequence.")
        if isinstance(rows, (list, tuple, np.ndarray)):
            deque(_checked(rows, self._n_vocabulary), maxlen=0)
            if isinstance(rows[0], str):
                self._need_tokenizer()
        return self._iter_windows(_checked(rows, self._n_vocabulary), total)

    def _iter_windows(self, rows: Iterator[str | np.ndarray], total: int | None) -> Iterator[_Window]:
        budget = _WINDOW_BYTES // (4 * self._n_features_out)
        n_sequences = n_rows = 0
        watch = PaddingWatch(self._suspects)
        warned = False
        with progress_bar("activations", total=total, unit="sequence", verbose=self.verbose) as bar:
            while chunk := list(islice(rows, _LOOK_AHEAD * self._batch_size)):
                window: list[np.ndarray] = []
                n_window = 0
                if not warned and not isinstance(chunk[0], str):
                    for _, alike in groupby(sorted(chunk, key=len), key=len):
                        watch.look(np.stack(list(alike)))
                    warned = watch.warn("X", "leave them out, since sequences may have different lengths")
                for ids in self._cut(chunk, n_sequences):
                    kept = max(len(ids) - self._skip_first, 0)
                    if self.pooling is not None:
                        if not kept:
                            raise ValueError(
                                f"X[{n_sequences + len(window)}] has {len(ids)} tokens and skip_first="
                                f"{self._skip_first} leaves none to pool; leave the sequence out or lower skip_first."
                            )
                        kept = 1
                    if n_window >= budget and len(window) % self._batch_size == 0:
                        yield _Window(n_sequences, window, n_window)
                        bar.update(len(window))
                        n_sequences, n_rows = n_sequences + len(window), n_rows + n_window
                        window, n_window = [], 0
                    window.append(ids)
                    n_window += kept
                yield _Window(n_sequences, window, n_window)
                bar.update(len(window))
                n_sequences, n_rows = n_sequences + len(window), n_rows + n_window
        if not n_sequences:
            raise ValueError("X is empty: it holds no sequence.")
        if not n_rows:
            raise ValueError(
                f"X leaves no activations: none of its {n_sequences} sequences has more than "
                f"skip_first={self._skip_first} tokens."
            )

    def _need_tokenizer(self) -> Any:
        if self.tokenizer_ is None:
            raise ValueError(
                f"X holds texts and tokenizer={self.tokenizer!r}: {self._why_no_tokenizer}; set tokenizer."
            )
        return self.tokenizer_

    def _cut(self, chunk: list[Any], first: int) -> Iterable[np.ndarray]:
        """Token ids of a chunk of rows, none longer than allowed; `first` is the index of the first row."""
        if not isinstance(chunk[0], str):
            return (ids[: self.max_length_] for ids in chunk)
        options: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
        if self.max_length_ is not None:
            options |= {"truncation": True, "max_length": self.max_length_}
        ids = self._need_tokenizer()(chunk, **options)["input_ids"]
        return (_token_ids(row, index, self._n_vocabulary) for index, row in enumerate(ids, start=first))

    def _activations(self, window: _Window) -> Iterator[np.ndarray]:
        """Rows of one window, in order; padding is little, since like lengths go together."""
        lengths = np.array([len(ids) for ids in window.sequences])
        used = np.flatnonzero(lengths > self._skip_first)
        counts = np.maximum(lengths - self._skip_first, 0) if self.pooling is None else np.ones_like(lengths)
        starts = np.cumsum(counts) - counts
        order = used[np.argsort(-lengths[used], kind="stable")]
        sorted_already = bool((np.diff(order) > 0).all())  # as blocks of one length are
        ordered = np.empty((0 if sorted_already else window.n_rows, self._n_features_out), dtype=np.float32)
        end = 0
        while end < len(order):
            members = order[end : end + self._batch_size]
            if not self._takes_mask:  # then padding would be taken for text
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
        """Hidden states (n, seq_len, d_model) after the block, and the mask of true tokens."""
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
            raise _BlockReached(output if isinstance(output, torch.Tensor) else output[0])

        # All of it for each batch: between batches the model is the caller's.
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
        """Rows of tokens or of sequences, out of what is neither padding nor skipped."""
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
        tags.input_tags.two_d_array = False  # two-dimensional input is token ids, no table of features
        tags.transformer_tags.preserves_dtype = []
        return tags


# Activations on disk


class ActivationStore:
    """Activations on disk, used like an array that is read only where it is looked at.

    `ActivationExtractor.transform_to_store` writes it.

    Parameters
    ----------
    path : path-like
        Folder of the store.

    Attributes
    ----------
    path : Path
        The folder.
    shape : tuple of (int, int)
        Number of rows and d_model.
    dtype : numpy.dtype
        float32 or float16.
    manifest : dict
        What the store holds and where it came from: ``shape``, ``dtype``, ``settings`` of the
        extraction, ``input_sha256`` of the token ids, and ``shards``, each with its ``file``, ``rows``,
        ``bytes`` and the ``sha256`` of its values.

    Raises
    ------
    FileNotFoundError
        If there is no finished store at `path`, or a shard is missing.
    ValueError
        If the manifest is not one or was altered, or a shard is truncated; and, when rows of it are first
        read, if a shard was altered.

    Notes
    -----
    Shards are ``.npy`` files, opened as memory maps and without pickle; ``manifest.json`` is written
    last, so that a folder with one is complete. Opening checks the manifest, and that every shard is
    there and of the right size. A shard's SHA-256 is compared when rows of it are first read, once per
    process, which takes about a second per gigabyte; `verify` compares all of them at once.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXModel
    >>> from geofloor import ActivationExtractor
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    ... )
    >>> tokens = np.arange(60).reshape(4, 15) % 32
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = ActivationExtractor(GPTNeoXModel(config), layer=1).transform_to_store(tokens, folder)
    ...     store.shape, store[[5, 3]].shape, [len(rows) for rows in store.iter_batches(40)]
    ((56, 16), (2, 16), [40, 16])
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._open(check_path("path", path), _MANIFEST)

    def _open(self, path: Path, name: str) -> None:
        self.path = path
        if not (path / name).is_file():
            begun = (path / _PARTIAL_MANIFEST).is_file()
            hint = " Its extraction was interrupted; call transform_to_store again." if begun else ""
            raise FileNotFoundError(f"There is no finished activation store at '{path}'.{hint}")
        self.manifest = read_sealed(
            path / name,
            what="the manifest of an activation store",
            kind=_FORMAT,
            version=_VERSION,
            entries={
                "shape": _shape_entry,
                "dtype": choice(*_STORE_DTYPES),
                "settings": _SETTINGS,
                "input_sha256": sha256 if name == _MANIFEST else optional(sha256),
                "shards": _shards_entry,
            },
            remedy=_EXTRACT_AGAIN,
        )
        self.shape: tuple[int, int] = (self.manifest["shape"][0], self.manifest["shape"][1])
        self.dtype = np.dtype(self.manifest["dtype"])
        self._shards = [
            (path / shard["file"], shard["rows"], shard["bytes"], shard["sha256"]) for shard in self.manifest["shards"]
        ]
        self._bounds = np.cumsum([0, *(rows for _, rows, _, _ in self._shards)])
        if self._bounds[-1] != self.shape[0]:
            raise ValueError(
                f"'{path / name}' is inconsistent: its shards do not add up to {self.shape[0]} rows; {_EXTRACT_AGAIN}."
            )
        for file, _, size, _ in self._shards:
            if not file.is_file():
                raise FileNotFoundError(f"The shard '{file}' is missing; extract the activations again.")
            if file.stat().st_size != size:
                raise _refused_shard(file, f"has {file.stat().st_size} bytes in place of {size}")
        self._map = functools.lru_cache(_OPEN_SHARDS)(self._load)

    @classmethod
    def _partial(cls, path: Path) -> ActivationStore:
        store = cls.__new__(cls)
        store._open(path, _PARTIAL_MANIFEST)
        return store

    def _load(self, index: int, *, again: bool = False) -> np.ndarray:
        file, rows, _, sha256 = self._shards[index]
        return map_npy(
            file,
            shape=(rows, self.shape[1]),
            dtype=self.dtype,
            sha256=sha256,
            refused=functools.partial(_refused_shard, file),
            again=again,
        )

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):  # store[rows, columns], columns no more than a slice
            rows, *columns = key
            if not all(column is Ellipsis or isinstance(column, slice) for column in columns):
                raise IndexError("columns of an ActivationStore can be chosen by a slice only.")
            if rows is Ellipsis or isinstance(rows, (int, np.integer)):
                return self[:][key] if rows is Ellipsis else self[rows][tuple(columns)]
            return self[rows][(slice(None), *columns)]
        if key is Ellipsis:
            key = slice(None)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._contiguous(start, stop) if step == 1 else self._gather(np.arange(start, stop, step))
        index = np.asarray(key)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {index.shape} does not fit {len(self)} rows.")
            return self._gather(np.flatnonzero(index))
        if index.size == 0 and index.ndim == 1:
            index = index.astype(np.int64)
        if index.dtype.kind not in "iu" or index.ndim > 1:
            raise IndexError(
                f"rows are chosen by an integer, a slice, or a 1-D array of integers or bools, not {key!r}."
            )
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(f"row {index[outside].flat[0]} is out of bounds for {len(self)} rows.")
        index = index.astype(np.int64)
        rows = self._gather(np.atleast_1d(index) % max(len(self), 1))
        return rows[0] if index.ndim == 0 else rows

    def _contiguous(self, start: int, stop: int) -> np.ndarray:
        rows = np.empty((max(stop - start, 0), self.shape[1]), dtype=self.dtype)
        for shard in range(len(self._shards)):
            low, high = max(start, self._bounds[shard]), min(stop, self._bounds[shard + 1])
            if low < high:
                offset = self._bounds[shard]
                rows[low - start : high - start] = self._map(shard)[low - offset : high - offset]
        return rows

    def _gather(self, index: np.ndarray) -> np.ndarray:
        rows = np.empty((len(index), self.shape[1]), dtype=self.dtype)
        order = np.argsort(index, kind="stable")  # each shard is read from its beginning to its end
        bounds = np.searchsorted(index[order], self._bounds)
        for shard in np.flatnonzero(np.diff(bounds)):
            members = order[bounds[shard] : bounds[shard + 1]]
            rows[members] = self._map(int(shard))[index[members] - self._bounds[shard]]
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an ActivationStore lies on disk and can't be an array without being copied.")
        return np.asarray(self[:], dtype=dtype)

    def iter_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Read all rows in order.

        Parameters
        ----------
        batch_size : int
            Rows a batch; the last one may have fewer.

        Yields
        ------
        activations : ndarray of shape (batch_size, d_model)
            Rows, in memory.
        """
        batch_size = check_number("batch_size", batch_size, 1, whole=True)
        return (self[start : start + batch_size] for start in range(0, len(self), batch_size))

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest's.

        Raises
        ------
        ValueError
            If a shard was altered; the message names it.
        """
        for index in range(len(self._shards)):
            self._load(index, again=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}', shape={self.shape}, dtype={self.dtype})"


def _refused_shard(file: Path, reason: str) -> ValueError:
    return ValueError(f"The shard '{file}' {reason}; {_EXTRACT_AGAIN}.")


def _shape_entry(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name}={value!r:.40} is no shape of two dimensions")
    return [count(name, value[0]), number(1, 2**31, whole=True)(name, value[1])]


def _shards_entry(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    shards = [_SHARD(f"{name}[{index}]", shard) for index, shard in enumerate(value)]
    for index, shard in enumerate(shards):
        choice(_shard_name(index))(f"{name}[{index}].file", shard["file"])  # no file elsewhere, and none twice
    return shards


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.npy"


_SHARD = fields(file=text, rows=number(1, 2**31, whole=True), bytes=count, sha256=sha256, input_sha256=sha256)
_SETTINGS = fields(
    model=text,
    model_sha256=sha256,
    layer=count,
    n_layers=count,
    skip_first=count,
    pooling=optional(choice("mean", "last")),
    max_length=optional(count),
    batch_size=count,
    shard_tokens=count,
)


class _StoreWriter:
    """Cuts rows into shards and knows what an earlier, interrupted run has stored of them."""

    def __init__(self, path: Path, settings: dict[str, Any], *, width: int, dtype: str, shard_tokens: int):
        self.path = path
        self.digest = hashlib.sha256()  # of the token ids so far
        self.window_sha256 = ""  # of the token ids up to the end of the window that is being added
        self.position = 0  # rows that have gone by
        self.manifest: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "shape": [0, width],
            "dtype": dtype,
            "settings": settings,
            "input_sha256": None,
            "shards": [],
        }
        self.complete = (path / _MANIFEST).exists()
        self.stored: ActivationStore | None = None
        if self.complete:
            self.stored = ActivationStore(path)
        elif (path / _PARTIAL_MANIFEST).exists():
            self.stored = ActivationStore._partial(path)
        if self.stored is not None:
            there = {
                **self.stored.manifest["settings"],
                "d_model": self.stored.shape[1],
                "dtype": str(self.stored.dtype),
            }
            here = {**settings, "d_model": width, "dtype": dtype}
            weights = here.pop("model_sha256")
            del here["model"]  # the name may be that of a moved folder; the activations tell more
            other = [f"{key}={there.get(key)!r}, not {here[key]!r}" for key in here if there.get(key) != here[key]]
            if other:
                raise self._refused(f"was made with {'; '.join(other)}")
            if there["model_sha256"] != weights:
                raise self._refused("was made by a model with other weights or settings")
            for index in range(len(self.stored.manifest["shards"])):
                self.stored._load(index)  # verifies it
            self.manifest = self.stored.manifest
        self.n_stored = 0 if self.stored is None else len(self.stored)
        self.buffer = np.empty((shard_tokens, width), dtype=dtype)
        self.filled = 0

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"The activation store at '{self.path}' {reason}; remove that folder or use another path.")

    def wants(self, window: _Window) -> bool:
        """Whether to compute the rows of this window: not if all are stored, and more come after them.

        The last of the stored rows are computed again: if the input or the model has changed, it shows.
        """
        for ids in window.sequences:
            self.digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
        end = self.position + window.n_rows
        if not window.n_rows or end < self.n_stored:
            self.position = end
            return False
        self.window_sha256 = self.digest.hexdigest()
        if self.position < self.n_stored and self.window_sha256 != self.manifest["shards"][-1]["input_sha256"]:
            raise self._refused("was made from another input")
        return True

    def add(self, rows: np.ndarray) -> None:
        n_known = min(max(self.n_stored - self.position, 0), len(rows))
        if n_known and self.stored is not None:
            known = self.stored[self.position : self.position + n_known].astype(np.float32)
            # Threads and devices round differently. Medians, since a few dimensions can dwarf the others.
            if np.median(np.abs(rows[:n_known] - known)) > 0.01 * np.median(np.abs(known)):
                raise self._refused("was made by a model that computes something else with the same weights")
        self.position += len(rows)
        rows = rows[n_known:]
        if len(rows) and self.complete:
            raise self._refused("was made from another, shorter input")
        while len(rows):
            fitting = rows[: len(self.buffer) - self.filled]
            target = self.buffer[self.filled : self.filled + len(fitting)]
            with np.errstate(over="ignore"):
                target[...] = fitting
            if target.dtype == np.float16 and not np.isfinite(target).all():
                raise ValueError(
                    f"dtype='float16' cannot hold activations as large as {np.abs(fitting).max():.3g}; use 'float32'."
                )
            self.filled += len(fitting)
            rows = rows[len(fitting) :]
            if self.filled == len(self.buffer):
                self._write()

    def _write(self) -> None:
        shards = self.manifest["shards"]
        values = self.buffer[: self.filled]
        header = npy_header(values.shape, values.dtype)
        file = self.path / _shard_name(len(shards))
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            stream.write(header)
            stream.write(values.data)
        shards.append(
            {
                "file": file.name,
                "rows": self.filled,
                "bytes": len(header) + values.nbytes,
                "sha256": hashlib.sha256(values.data).hexdigest(),
                "input_sha256": self.window_sha256,
            }
        )
        self.manifest["shape"][0] += self.filled
        self.filled = 0
        write_sealed(self.path / _PARTIAL_MANIFEST, self.manifest)

    def finish(self) -> ActivationStore:
        if self.position < self.n_stored:
            raise self._refused("was made from another, longer input")
        if self.complete:
            if self.digest.hexdigest() != self.manifest["input_sha256"]:
                raise self._refused("was made from another input")
        else:
            if self.filled:
                self._write()
            self.manifest["input_sha256"] = self.digest.hexdigest()
            write_sealed(self.path / _MANIFEST, self.manifest)
        if (self.path / _PARTIAL_MANIFEST).exists():  # a finished store may lie in a folder that can't be written to
            (self.path / _PARTIAL_MANIFEST).unlink(missing_ok=True)
        return ActivationStore(self.path)
