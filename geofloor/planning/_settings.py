"""Settings of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from geofloor._validation import check_choice, check_flag, check_iterable, check_number, shown

# Shares of the teacher's width: of the rows of the table, and of the students that are trained.
_PLANNED = 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8
_TRAINED = 1 / 4, 3 / 4


@dataclass(frozen=True)
class PlanSettings:
    """Settings of a plan, checked. Widths are filled in once the teacher is known."""

    target_kl: float | None = None  # nats per token
    width: int | None = None  # the width asked about
    widths: tuple[int, ...] | None = None  # rows of the table
    run_widths: tuple[int, ...] | None = None  # students to train; () for none
    budgets: tuple[int, ...] = (150, 300, 600)  # steps of each of them
    batch_size: int = 8  # sequences per step
    n_tokens: int = 200_000  # measured
    length: int = 256  # tokens per sequence
    init: str = "auto"
    head_dim: int | None = None
    features: bool = True
    layer: int | None = None
    random_state: int = 0

    @classmethod
    def read(cls, **given: Any) -> PlanSettings:
        """Check the settings that can be checked without a teacher.

        Raises
        ------
        ValueError
            If a setting is out of its range.
        """
        numbers = {
            name: check_number(name, given[name], low, whole=True)
            for name, low in (("batch_size", 1), ("n_tokens", 1), ("length", 2), ("random_state", 0))
        }
        target, layer, width = given["target_kl"], given["layer"], given["width"]
        budgets = _whole_numbers("budgets", given["budgets"])
        if not budgets:
            raise ValueError("budgets=() must hold at least one number of steps; to train no students, run_widths=().")
        widths = None if given["widths"] is None else _whole_numbers("widths", given["widths"])
        if widths == ():
            raise ValueError("widths=() must hold at least one width; None takes fractions of the teacher's.")
        return cls(
            target_kl=None if target is None else check_number("target_kl", target, 0, open_low=True),
            width=None if width is None else check_number("width", width, 1, whole=True),
            widths=widths,
            run_widths=None if given["run_widths"] is None else _whole_numbers("run_widths", given["run_widths"]),
            budgets=budgets,
            init=check_choice("init", given["init"], ("auto", "principal", "random")),
            head_dim=None if given["head_dim"] is None else check_number("head_dim", given["head_dim"], 2, whole=True),
            features=check_flag("features", given["features"]),
            layer=None if layer is None else check_number("layer", layer, whole=True),
            **numbers,
        )

    def for_width(self, own: int) -> PlanSettings:
        """Fill in the widths, as fractions of the teacher's own.

        Raises
        ------
        ValueError
            If a width is above the teacher's.
        """
        planned = self.widths or tuple(max(round(share * own), 1) for share in _PLANNED)
        asked = () if self.width is None else (self.width,)
        trained = self.run_widths
        if trained is None:
            trained = tuple(max(round(share * own), least) for share, least in zip(_TRAINED, (1, 2), strict=True))
        for name, values in (("widths", planned), ("run_widths", trained), ("width", asked)):
            if values and max(values) > own:
                raise ValueError(
                    f"{name}={shown(values[0] if name == 'width' else list(values))} exceeds the teacher's width of "
                    f"{own}; a student is no wider than its teacher."
                )
        return replace(self, widths=tuple(sorted({*planned, *asked})), run_widths=trained)

    @property
    def n_blocks(self) -> int:
        """Number of sequences to measure on."""
        return -(-self.n_tokens // (self.length - 1))

    @property
    def n_trained(self) -> int:
        """Number of sequences that the longest student sees."""
        return 0 if self.run_widths == () else max(self.budgets) * self.batch_size

    @property
    def step_tokens(self) -> int:
        """Tokens per step of a student."""
        return self.batch_size * self.length

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlanSettings:
        """Read what `to_json` returned."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**plain)


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    """Read whole numbers from 1 on, in ascending order, each once."""
    if isinstance(values, str | bytes | Mapping):
        raise ValueError(f"{name}={shown(values)} must be a list of whole numbers.")
    listed: Sequence[Any] = list(check_iterable(name, values, "give a list of whole numbers"))
    return tuple(sorted({check_number(name, each, 1, whole=True) for each in listed}))
