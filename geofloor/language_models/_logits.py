"""Causal language models as functions from token ids to logits."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from geofloor._training.products import faster_linear, largest_matrix
from geofloor._training.weights import model_sha256
from geofloor._validation import check_number
from geofloor.language_models._divergence import LazyLogits
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._token_rows import TokenRows, ending_ids


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


class LanguageModel:
    """A causal language model, with logits unevaluated where hidden states times unembedding equal them.

    Parameters
    ----------
    module : torch.nn.Module
        Model from token ids (n, seq_len) to logits, or to an object with logits.
    name : str
        Name of the model in error messages.
    n_vocabulary : int or None, default=None
        Number of tokens that count, the first ones; None takes all.
    """

    def __init__(self, module: torch.nn.Module, name: str, *, n_vocabulary: Any = None) -> None:
        self.module: Any = module
        parameter = next(module.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.head: torch.nn.Linear | None = None
        self._largest = largest_matrix(module)
        self._options: dict[str, Any] = {}
        probe = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        with evaluating(module), torch.no_grad():
            try:
                logits = _logits(module(probe))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, which can't take token ids of shape (n_sequences, seq_len) "
                    f"({type(error).__name__}: {error})."
                ) from error
            if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, which gives no logits (n, seq_len, n_vocabulary)."
                )
            self._n_logits = self.n_vocabulary = logits.shape[-1]
            if n_vocabulary is not None:
                self.n_vocabulary = check_number("n_vocabulary", n_vocabulary, 2, self._n_logits, whole=True)
            if isinstance(module, PreTrainedModel):
                if "use_cache" in inspect.signature(module.base_model.forward).parameters:
                    self._options["use_cache"] = False
                self._split(probe, logits)

    def _split(self, probe: torch.Tensor, logits: torch.Tensor) -> None:
        """Use hidden states and unembedding if their product gives the logits."""
        head = self.module.get_output_embeddings()
        if type(head) is not torch.nn.Linear or self.module.base_model is self.module:
            return
        # Capped logits differ from the product by less than the tolerance where they are small (Gemma 2).
        if getattr(self.module.config.get_text_config(), "final_logit_softcapping", None):
            return
        hidden = self.module.base_model(probe, **self._options)[0]
        if hidden.shape[-1] == head.in_features and torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-4):
            self.head = head

    @property
    def max_length(self) -> int | None:
        """Number of positions; None if unknown."""
        config = getattr(self.module, "config", None)
        if not isinstance(self.module, PreTrainedModel) or config is None:
            return None
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    @property
    def n_tokens(self) -> int:
        """Number of token ids with an embedding."""
        if isinstance(self.module, PreTrainedModel):
            return min(self.module.get_input_embeddings().weight.shape[0], self.n_vocabulary)
        return self.n_vocabulary

    def check_layer(self, layer: Any) -> None:
        """Refuse a block index out of range, if the number of blocks is known."""
        layer = check_number("layer", layer, whole=True)
        config = getattr(self.module, "config", None)
        n = (
            getattr(config.get_text_config(), "num_hidden_layers", None)
            if isinstance(config, PreTrainedConfig)
            else None
        )
        if n is not None and not -n <= layer < n:
            raise ValueError(f"layer={layer} is not there: the model has {n} blocks, 0 to {n - 1} (or -{n} to -1).")

    @property
    def ending_ids(self) -> set[int]:
        """Ids of the padding and end tokens in the configuration."""
        config = getattr(self.module, "config", None)
        return ending_ids(config.get_text_config()) if isinstance(config, PreTrainedConfig) else set()

    def token_rows(
        self, tokens: Any, name: str, pad_token_id: int | None, *, excluded: Collection[int] = (), **options: Any
    ) -> TokenRows:
        """Return token ids, checked for this model. Tokens that are `excluded` are no undeclared padding."""
        suspects = self.ending_ids.difference(excluded)
        if self.n_vocabulary < self._n_logits:
            options["source"] = f"raise n_vocabulary={self.n_vocabulary}"
        return TokenRows(tokens, name, self.n_tokens, self.max_length, pad_token_id, suspects=suspects, **options)

    def inner_matrices(self) -> list[torch.nn.Parameter]:
        """List the two-dimensional weights other than embeddings and the unembedding."""
        outer = {id(each.weight) for each in self.module.modules() if isinstance(each, torch.nn.Embedding)}
        matrices = [each for each in self.module.parameters() if each.ndim == 2 and id(each) not in outer]
        if self.head is not None:
            return [each for each in matrices if each is not self.head.weight]
        return [each for each in matrices if self._n_logits not in each.shape]

    def logits(self, ids: torch.Tensor) -> LazyLogits:
        """Run the model on token ids (n, seq_len), and return logits with one row per position."""
        with faster_linear(ids.numel(), self._largest, ids.device):
            if self.head is None:
                return LazyLogits(_logits(self.module(ids, **self._options)).flatten(0, 1)).first(self.n_vocabulary)
            hidden = self.module.base_model(ids, **self._options)[0]
        return LazyLogits(hidden.flatten(0, 1), self.head.weight, self.head.bias).first(self.n_vocabulary)

    def digest(self) -> str:
        """Identify the model by a SHA-256 over weights, buffers and configuration."""
        return model_sha256(self.module)
