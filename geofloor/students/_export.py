"""Folders of `transformers` for fitted students, with a model card, on disk or on the hub."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from geofloor._validation import check_path, shown
from geofloor.language_models import BottleneckPredictor
from geofloor.language_models._loading import building, is_name, load_tokenizer
from geofloor.students._architecture import model_width

_ON_HUB = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_STARTS = {"principal": "the teacher's principal directions", "random": "random weights"}


class ExportMixin:
    """Write a fitted student for `transformers`, as `save_pretrained` and `push_to_hub` do."""

    def save_pretrained(self, folder: str | os.PathLike[str], *, tokenizer: Any = None, bound: Any = None) -> None:
        """Write the student as a folder of ``transformers``, with tokenizer and model card.

        ``AutoModelForCausalLM.from_pretrained(folder)`` loads it, without geofloor. Use `save` and `load` to get the
        estimator back.

        Parameters
        ----------
        folder : str or path
            Folder to write to. Files of the same names in it are replaced.
        tokenizer : PreTrainedTokenizerBase, str, path-like or None, default=None
            Tokenizer to write beside the model. By default that of a teacher given by name, if it has one.
        bound : BottleneckPredictor or None, default=None
            Bound fitted on the teacher at the same temperature, for the card.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the student is not fitted.
        TypeError
            If `tokenizer` or `bound` are objects of another kind.
        ValueError
            If the student is no model of ``transformers``, `folder` is a file, the tokenizer has more tokens than the
            student, or the bound is not fitted at the temperature of the student.

        Notes
        -----
        The card, ``README.md``, names the teacher, the sizes, the loss with its error, the settings of the training and
        the commands to load and measure the student. It sets no license: that of the teacher and of the text may bind
        you.
        """
        check_is_fitted(self)
        path = check_path("folder", folder)
        self._write(path, tokenizer, bound, None)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: Any = None,
        bound: Any = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, in one commit.

        Parameters
        ----------
        repo_id : str
            Repository, ``owner/name``. It is made if there is none.
        tokenizer, bound : object
            As in `save_pretrained`.
        private : bool or None, default=None
            Whether a new repository is private; by default as the owner's account says.
        token : bool, str or None, default=None
            Token of the hub; by default that of ``hf auth login``.
        revision : str or None, default=None
            Branch to write to.
        commit_message : str or None, default=None
            Message of the commit.
        create_pr : bool, default=False
            Whether to open a pull request in place of a commit.

        Returns
        -------
        url : str
            Address of the commit.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the student is not fitted.
        TypeError, ValueError
            As `save_pretrained`, or if `repo_id` is no name of a repository.
        OSError
            If the hub can't be reached or refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

        check_is_fitted(self)
        if not isinstance(repo_id, str) or not _ON_HUB.fullmatch(repo_id):
            raise ValueError(f"repo_id={shown(repo_id)} is no name of a repository; give 'owner/name'.")
        message = f"Upload student of width {self.width}" if commit_message is None else commit_message  # type: ignore[attr-defined]
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), tokenizer, bound, repo_id)
            try:
                name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                commit = api.upload_folder(
                    repo_id=name,
                    folder_path=folder,
                    commit_message=message,
                    revision=revision,
                    create_pr=create_pr,
                )
            except HFValidationError as error:
                raise ValueError(f"repo_id={repo_id!r} is no name of a repository: {error}.") from error
            except OfflineModeIsEnabled as error:
                raise OSError(f"repo_id={repo_id!r} can't be reached: {error}") from error
        return str(commit.commit_url)

    def _write(self, folder: Path, tokenizer: Any, bound: Any, repo_id: str | None) -> None:
        model: Any = self.model_  # type: ignore[attr-defined]
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"A student of type {type(model).__name__} is no model of transformers, which alone can write such a "
                "folder; save its weights yourself."
            )
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"folder='{folder}' is a file; give a folder.")
        found = self._tokenizer_to_write(tokenizer)
        card = self._card(bound, repo_id, has_tokenizer=found is not None)
        with building():
            model.save_pretrained(folder)
        if found is not None:
            found.save_pretrained(folder)
        readme = folder / "README.md"
        readme.write_text(card, encoding="utf-8")
        for weights in folder.glob("*.safetensors"):  # safetensors makes private files
            weights.chmod(readme.stat().st_mode)

    def _tokenizer_to_write(self, tokenizer: Any) -> Any:
        teacher, model_kwargs = self.teacher, self.model_kwargs  # type: ignore[attr-defined]
        found, _ = load_tokenizer(tokenizer, teacher, model_kwargs)
        if found is None:
            return None
        if not isinstance(found, PreTrainedTokenizerBase):
            raise TypeError(
                f"tokenizer={shown(found)} is a {type(found).__name__}, which can't be written; give a tokenizer of "
                "transformers, or its name or path."
            )
        n_tokens = self.model_.get_input_embeddings().weight.shape[0]  # type: ignore[attr-defined]
        if len(found) > n_tokens:
            raise ValueError(
                f"tokenizer has {len(found)} tokens, and the student {n_tokens}; give the tokenizer of the teacher."
            )
        return found

    # The card

    def _card(self, bound: Any, repo_id: str | None, *, has_tokenizer: bool) -> str:
        from huggingface_hub import ModelCardData

        student: Any = self
        name, on_hub = _teacher_name(student)
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="text-generation",
            base_model=name if on_hub else None,
            tags=["distillation", "geofloor"],
        )
        rows = "\n".join(f"| {what} | {value} |" for what, value in _facts(student, name, bound))
        teacher = f'"{name}"' if on_hub else "teacher"  # a folder of this machine is no use to others
        return _CARD.format(
            data=data.to_yaml().strip(),
            width=student.width,
            name=name,
            rows=rows,
            folder=f'"{repo_id or "path/to/this/folder"}"',
            tokenizer=f'"{repo_id or "path/to/this/folder"}"' if has_tokenizer else teacher,
            teacher=teacher,
            temperature=f"{float(student.temperature):g}",
        )


_CARD = """---
{data}
---

# Student of width {width}, distilled from {name}

A language model of width {width}, trained by geofloor to give next tokens the probabilities that {name} gives them
([arXiv:2604.04037](https://arxiv.org/abs/2604.04037)).

| | |
|---|---|
{rows}

The loss is the forward KL divergence from the teacher's next-token distributions, both at the temperature, averaged
over positions and without the factor T². It is the loss after these steps: more of them may lower it.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
```

To measure its loss on your own text, given as token ids of shape (n_sequences, seq_len):

```python
from geofloor.students import evaluate_student

print(evaluate_student({folder}, {teacher}, tokens, temperature={temperature}))
```

## License

None is set here. Licenses of the teacher and of the text may apply.
"""


def _teacher_name(student: Any) -> tuple[str, bool]:
    """Return a name of the teacher for readers, and whether it is one of the hub."""
    teacher = student.teacher if student.teacher is not None else getattr(student, "_saved_teacher", None)
    given: Any = getattr(teacher.config, "_name_or_path", "") if isinstance(teacher, PreTrainedModel) else teacher
    if not is_name(given) or not os.fspath(given):
        return "a model without a name" if teacher is None else f"a {type(teacher).__name__}", False
    if isinstance(given, str) and _ON_HUB.fullmatch(given) and not Path(given).exists():
        return given, True
    return f"the model in the folder {Path(given).name!r}".replace("|", "\\|"), False


def _facts(student: Any, name: str, bound: Any) -> list[tuple[str, str]]:
    """List what a card tells about a student."""
    module = student.teacher if isinstance(student.teacher, torch.nn.Module) else None
    if module is None and getattr(student, "_loaded", None) is not None:
        module = student._loaded[1][1]
    teacher = name
    if module is not None:
        width = "" if model_width(module) is None else f"width {model_width(module)}, "
        teacher = f"{name}, {width}{sum(each.numel() for each in module.parameters()):,} parameters"
    heads = getattr(getattr(student.model_, "config", None), "num_attention_heads", None)
    of_heads = "" if heads is None else f"{heads} head{'' if heads == 1 else 's'}, "
    error = "" if np.isnan(student.floor_error_) else f" ± {student.floor_error_:.2g}"
    length = getattr(student, "sequence_length_", None)
    tokens = ""
    if length is not None:
        n = student.batch_size_ * length
        tokens = f" of {length} tokens: {n:,} tokens per step, {student.n_steps_ * n:,} in all"
    return [
        ("Teacher", teacher),
        (
            "Student",
            f"width {student.width}, {of_heads}{student.n_parameters_:,} parameters",
        ),
        ("Loss on held-out text", f"{student.floor_:.4g}{error} nats per token{' (standard error)' if error else ''}"),
        ("Loss of a student of width 0", f"{student.zero_width_loss_:.4g} nats per token"),
        *([] if bound is None else [("Least loss of any student of this width", _least(student, bound))]),
        ("Temperature", f"{float(student.temperature):g}"),
        ("Training", f"{student.n_steps_:,} steps of {student.batch_size_} sequences{tokens}"),
        ("Optimizer", f"{student.optimizer}, learning rate {student.learning_rate_:.3g}"),
        ("Start", _STARTS[student.init_]),
    ]


def _least(student: Any, bound: Any) -> str:
    """Word the bound of the student's width."""
    if not isinstance(bound, BottleneckPredictor):
        raise TypeError(f"bound={shown(bound)} is a {type(bound).__name__}; give a fitted BottleneckPredictor.")
    check_is_fitted(bound)
    if float(bound.temperature) != float(student.temperature):
        raise ValueError(
            f"bound was measured at temperature={bound.temperature:g} and the student at {student.temperature:g}; fit "
            "the bound at the student's."
        )
    low, high = bound.predict([student.width], return_bounds=True)[1][0]
    return f"{low:.4g} to {high:.4g} nats per token, by the softmax bottleneck"
