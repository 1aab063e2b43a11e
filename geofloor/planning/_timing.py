"""Time short pieces of a plan's stages with the real teacher, on this machine."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from geofloor._training.muon import Muon
from geofloor._training.sampling import steps_per_epoch
from geofloor.features import FeatureStatistics, SparseAutoencoder
from geofloor.features._autoencoder_settings import Settings, resolve_settings
from geofloor.features._trainer import start_training, train_steps
from geofloor.language_models import ActivationExtractor
from geofloor.language_models._divergence import LazyLogits, LossTerms, Targets, default_chunk_rows, row_kls
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._low_rank import LowRankLogits, project_logits, without_masked_tokens
from geofloor.language_models._low_rank_fit import MINIBATCH, LowRankFit
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import heads_of
from geofloor.planning._text import PlanTokens
from geofloor.students import DistilledStudent
from geofloor.students._architecture import default_init
from geofloor.students._run import Run, build_run
from geofloor.students._settings import DistillationSettings, ResolvedSettings, StudentSpec

_FILLED = 0.1  # seconds that calls of a short piece are repeated for
_LONGEST = 1.0  # seconds of a piece whose size may be chosen
_FORWARD = 8192  # tokens per forward pass of the teacher alone, as in the stages
_TEMPERATURE = 2.0
_MOST_HELD_OUT = 2048  # rows that an autoencoder is scored on
_TIMED_BLOCKS = 2  # whose matrices a step of Muon is timed on


class TeacherSeconds(NamedTuple):
    """Seconds of the teacher, per sequence."""

    forward: float  # a forward pass up to the last hidden states
    probabilities: float  # logits and their softmax
    moments: float  # second moments of hidden states in float64, before a principal start


class StudentPieces(NamedTuple):
    """Seconds of a student of one width, and its sizes."""

    start: float  # making it
    step: float  # forward and backward pass, per sequence
    update: float  # one step of the optimizers
    evaluation: float  # forward pass and divergence, per sequence
    n_parameters: int
    n_moments: int  # numbers that the optimizers keep
    n_together: int  # numbers that Muon handles at once, in the matrices of one shape
    saved: int  # bytes that a forward pass keeps for the backward pass, per sequence


class BottleneckSeconds(NamedTuple):
    """Seconds of the bottleneck at one width."""

    step: float  # one step of the fit
    evaluation: float  # losses of as many positions as a step has
    projection: float  # least squares onto an unembedding


class FeatureSeconds(NamedTuple):
    """Seconds of the features."""

    extraction: float  # of activations, per sequence
    step: float  # of the autoencoder's training
    encoding: float  # codes and their statistics, per row
    ablation: float  # one pass of a changed teacher and its divergence, per sequence


class Timer:
    """Times pieces of work.

    Parameters
    ----------
    device : torch.device
        Device to wait for.
    clock : callable
        Seconds of a clock, such as `time.perf_counter`.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock

    def once(self, piece: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        self._wait()
        began = self._clock()
        piece()
        self._wait()
        return max(self._clock() - began, 1e-9)

    def mean(self, piece: Callable[[], object], *, first_counts: bool = False) -> float:
        """Return the mean seconds of a call, without the first unless calls are long or `first_counts`."""
        first = self.once(piece)
        if first >= _LONGEST or (first_counts and first >= _FILLED):
            return first
        spent, n_calls = (first, 1) if first_counts else (0.0, 0)
        while spent < _FILLED:
            spent += self.once(piece)
            n_calls += 1
        return spent / n_calls

    def per_item(self, piece: Callable[[int], object], wanted: int) -> float:
        """Return the seconds per item of a call on several items, at most `wanted` and at most about a second."""
        one = self.mean(lambda: piece(1))
        n = min(int(_LONGEST / one), wanted)
        return one if n <= 1 else self.mean(lambda: piece(n), first_counts=True) / n

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


class Pieces:
    """Pieces of a plan's stages, timed on the first sequences of its text.

    Parameters
    ----------
    module : torch.nn.Module
        The teacher, on its device.
    text : PlanTokens
        Text of the plan.
    settings : PlanSettings
        With widths filled in.
    clock : callable
        Seconds of a clock.
    """

    def __init__(
        self, module: Any, text: PlanTokens, settings: PlanSettings, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.module, self.text, self.settings = module, text, settings
        self.model = LanguageModel(module, "the teacher")
        self.device, self.length = self.model.device, text.measured.shape[1]
        self.timer = Timer(self.device, clock)
        self.at_once = max(_FORWARD // self.length, 1)
        self._known: dict[int, Targets] = {}
        config = module.config.get_text_config()
        self.own_width, self.n_blocks = int(config.hidden_size), int(config.num_hidden_layers)

    @torch.no_grad()
    def _targets(self, n: int) -> Targets:
        """Return the teacher's probabilities on the first sequences, which all pieces share."""
        if n not in self._known:
            with evaluating(self.module):
                found = Targets(self.model.logits(self._ids(n)), _TEMPERATURE, keep=True)
            _probabilities(found)
            self._known[n] = found
        return self._known[n]

    def _ids(self, n: int) -> torch.Tensor:
        """Return the first sequences, again from the start if there are fewer."""
        return torch.from_numpy(self._sequences(n)).to(self.device)

    def _sequences(self, n: int) -> np.ndarray:
        found: np.ndarray = np.take(self.text.measured, range(n), axis=0, mode="wrap")
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of the teacher's weights."""
        return sum(each.nbytes for each in self.module.parameters())

    @torch.no_grad()
    def teacher(self) -> TeacherSeconds:
        """Time the teacher."""
        with evaluating(self.module):
            forward = self.timer.per_item(lambda n: self.model.logits(self._ids(n)), self.at_once)
        logits = self._targets(1).source
        probabilities = self.timer.mean(lambda: _probabilities(Targets(logits, _TEMPERATURE)))
        hidden = torch.ones(self.length, self.own_width)

        def moments() -> None:
            exact = hidden.double()
            exact.T @ exact
            for _ in range(5):  # heads, and about four times as many units
                hidden.double().square().sum(dim=0)

        return TeacherSeconds(forward, probabilities, (self.n_blocks + 1) * self.timer.mean(moments))

    def resolved(self, width: int, n_steps: int) -> ResolvedSettings:
        """Return the settings that a student gets."""
        student = DistilledStudent(
            self.module,
            width,
            n_steps=n_steps,
            batch_size=self.settings.batch_size,
            init=self.settings.init,
            **heads_of(self.settings),
        )
        return DistillationSettings.from_parameters(student.get_params(deep=False)).resolve(
            n_sequences=len(self.text.trained),
            length=self.length,
            principal=default_init(self.module) == "principal",
            teacher_width=self.own_width,
        )

    def student(self, width: int) -> StudentPieces:
        """Time a student, and count its sizes."""
        settings = self.resolved(width, max(self.settings.budgets))
        made: list[Run] = []

        def make() -> None:
            spec = StudentSpec(width, heads_of(self.settings), 0, None, {})
            made[:] = [
                build_run(
                    spec,
                    self.model,
                    settings,
                    seed=0,
                    n_evaluated=1,
                    device=self.device,
                    init=settings.init,
                    tokens=self._sequences(1),
                )
            ]

        with evaluating(self.module):
            start = self.timer.once(make)
            run = made[0]

            def step(n: int) -> None:
                ids, found = self._ids(n), self._targets(n)
                terms = LossTerms(found, None, 1.0 / ids.numel(), settings.temperature**2)
                run.loss(run.model.logits(ids), found.source, terms, None).backward()

            self._targets(1)
            one = self.timer.mean(lambda: step(1))
            n = max(min(int(_LONGEST / one), settings.batch_size), 1)
            if n > 1:
                self._targets(n)
                one = self.timer.mean(lambda: step(n)) / n
            ids, found = self._ids(n), self._targets(n)
            update = self._update(run, settings)
            with torch.no_grad():
                evaluation = self.timer.mean(lambda: row_kls(run.model.logits(ids), found)) / len(ids)
        n_parameters = sum(each.numel() for each in run.parameters())
        inner = [
            each
            for optimizer in run.optimizers
            if isinstance(optimizer, Muon)
            for each in optimizer.param_groups[0]["params"]
        ]
        together: dict[torch.Size, int] = {}
        for each in inner:
            together[each.shape] = together.get(each.shape, 0) + each.numel()
        return StudentPieces(
            start,
            one,
            update,
            evaluation,
            n_parameters,
            2 * n_parameters - sum(together.values()),  # AdamW keeps two per number, Muon one
            max(together.values(), default=0),
            self._saved(run),
        )

    def _saved(self, run: Run) -> int:
        """Count the bytes that a forward pass on one sequence keeps for the backward pass, weights aside."""
        weights = {each.untyped_storage().data_ptr() for each in run.model.module.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with evaluating(self.module), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.model.logits(self._ids(1))
        return sum(found.values())

    def _update(self, run: Run, settings: ResolvedSettings) -> float:
        """Time one step of the optimizers from the gradients that are there; Muon on a few blocks."""
        parts = []
        for optimizer in run.optimizers:
            factor, timed = 1.0, optimizer
            if isinstance(optimizer, Muon):
                matrices = [each for each in optimizer.param_groups[0]["params"] if each.grad is not None]
                n = -(-len(matrices) * min(_TIMED_BLOCKS, self.n_blocks) // self.n_blocks)
                factor = len(matrices) / max(n, 1)
                timed = Muon(matrices[:n], lr=settings.learning_rate, weight_decay=settings.weight_decay)
            timed.param_groups[0]["lr"] = 0.0
            parts.append(factor * self.timer.mean(timed.step))
        if settings.clip_norm is not None:
            parts.append(self.timer.mean(lambda: torch.nn.utils.clip_grad_norm_(run.parameters(), math.inf)))
        return math.fsum(parts)

    @torch.no_grad()
    def bottleneck(self, width: int, n_positions: int) -> BottleneckSeconds:
        """Time the bottleneck at one width, on random logits of this rank and as many positions as a step has."""
        source = self._logits(n_positions)
        generator = torch.Generator().manual_seed(0)
        rows, weight = (
            torch.randn(n, width, generator=generator).to(self.device) for n in (len(source.rows), source.n_vocabulary)
        )
        student = LazyLogits(rows, weight / math.sqrt(width), torch.zeros(len(weight), device=self.device))
        fitted = LowRankFit(Targets(source, _TEMPERATURE, keep=True))
        order = np.random.default_rng(0)
        evaluation = self.timer.mean(lambda: fitted.losses(student))
        step = self.timer.mean(lambda: fitted.fit(student, 1, order))
        mean = torch.full_like(weight[:, 0], 1.0 / len(weight))
        projection = self.timer.mean(
            lambda: project_logits(fitted.targets, weight, torch.zeros_like(mean), mean), first_counts=True
        )
        return BottleneckSeconds(step, evaluation, projection)

    @torch.no_grad()
    def bottleneck_start(self, n_positions: int) -> float:
        """Time the singular value decomposition that the bottleneck starts from, on a few positions."""
        targets = Targets(self._logits(n_positions), _TEMPERATURE, keep=True)
        _probabilities(targets)
        return self.timer.mean(lambda: LowRankLogits(targets), first_counts=True)

    @property
    def chunk_rows(self) -> int:
        """Positions per chunk of logits."""
        return default_chunk_rows(self.model.n_vocabulary, self.device)

    def step_positions(self, n_fitted: int) -> int:
        """Return the positions per step of the bottleneck's fit, in whole chunks."""
        return min(-(-MINIBATCH // self.chunk_rows) * self.chunk_rows, n_fitted)

    def _logits(self, n_positions: int) -> LazyLogits:
        """Return the teacher's logits at some positions."""
        rows, *others = without_masked_tokens([self._targets(-(-n_positions // self.length)).source])[0]
        return LazyLogits(rows[:n_positions], *others)

    def autoencoder_settings(self, n_rows: int) -> Settings:
        """Return the settings that an autoencoder gets for a number of rows of activations."""
        return resolve_settings(SparseAutoencoder(), _Rows(n_rows - self.n_held_out_rows(n_rows)), self.own_width)

    @staticmethod
    def n_held_out_rows(n_rows: int) -> int:
        """Count the rows of activations that an autoencoder is scored on."""
        return min(int(SparseAutoencoder().validation_fraction * n_rows), _MOST_HELD_OUT)

    def features(self, layer: int, settings: Settings, teacher: TeacherSeconds, *, trains: bool) -> FeatureSeconds:
        """Time the features.

        Parameters
        ----------
        layer : int
            Block to measure after.
        settings : Settings
            Of the autoencoder.
        teacher : TeacherSeconds
            The teacher's times.
        trains : bool
            Whether an autoencoder is trained.
        """
        extractor = ActivationExtractor(
            self.module, layer, max_length=self.length, batch_size=self.at_once, device=str(self.device)
        ).fit()
        extraction = self.timer.per_item(lambda n: extractor.transform(self._sequences(n)), self.at_once)
        n_sequences = min(-(-settings.batch_size // max(self.length - 1, 1)), max(int(_LONGEST / extraction), 1))
        rows = np.asarray(extractor.transform(self._sequences(n_sequences)))
        batch = np.resize(rows, (settings.batch_size, rows.shape[1]))
        state = start_training(batch, settings, 0, self.device)
        step = 0.0
        if trains:
            steps = train_steps(state, settings, itertools.repeat(batch))
            next(steps)  # it may compile kernels
            step = self.timer.mean(lambda: next(steps))
        weights = [each.detach().cpu().numpy() for each in state.parameters]
        sae = SparseAutoencoder.from_weights(*weights, activation="topk", l0=settings.l0, device=str(self.device))

        def encode() -> None:
            FeatureStatistics().partial_fit(sae.transform(batch))

        targets = self._targets(1)
        with torch.no_grad():
            divergence = self.timer.mean(lambda: row_kls(targets.source, targets))
        return FeatureSeconds(extraction, step, self.timer.mean(encode) / len(batch), teacher.forward + divergence)


class _Rows:
    """Number of rows, for the settings of an autoencoder."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the whole batches in one pass."""
        return steps_per_epoch(self.n_rows, batch_size)


def _probabilities(targets: Targets) -> None:
    """Compute the probabilities of all chunks."""
    for index in range(len(targets.chunks)):
        targets.chunk(index)
