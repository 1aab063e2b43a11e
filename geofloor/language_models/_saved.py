"""Files of predictors that measured a teacher: without the teacher, unless it was given by name."""

from __future__ import annotations

import os
from typing import Any, Self

from geofloor._files.estimators import LeftOut, SaveMixin


class SaveWithoutModelsMixin(SaveMixin):
    """Leave models out of files.

    ``teacher`` is kept if it was given by name. It is None otherwise, and if it was loaded with ``model_kwargs``,
    because a file must not choose the arguments of ``from_pretrained``. An autoencoder is replaced by a `LeftOut`.
    Statistics are kept if they can be saved.
    """

    _not_saved = frozenset({"model_kwargs", "device"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a predictor written by `save`, without running code of the file.

        Parameters
        ----------
        path : str or path
            The file.

        Returns
        -------
        predictor : estimator
            The fitted predictor. Its predictions have the bits of those of the saved one. Its ``teacher`` is the name
            or path that was given, or None if the teacher was an object or had ``model_kwargs``. An autoencoder is left
            out. To fit again, give them by ``set_params``.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is truncated or altered, was written by a newer version of geofloor, or holds something else.
        """
        return super().load(path)

    def _parameters_to_save(self) -> dict[str, Any]:
        parameters = super()._parameters_to_save()
        teacher = parameters["teacher"]
        by_name = isinstance(teacher, str | os.PathLike) and not self.model_kwargs  # type: ignore[attr-defined]
        parameters["teacher"] = os.fspath(teacher) if by_name else None
        if parameters.get("autoencoder") is not None:
            parameters["autoencoder"] = _left_out(parameters["autoencoder"])
        if (statistics := parameters.get("statistics")) is not None and not isinstance(statistics, SaveMixin):
            parameters["statistics"] = _left_out(statistics)
        return parameters


def _left_out(value: Any) -> LeftOut:
    return value if isinstance(value, LeftOut) else LeftOut(type(value).__name__)
