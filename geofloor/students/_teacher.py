"""The teacher's side of a distillation: targets, and divergences from them on held-out text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from geofloor._training.devices import to_device
from geofloor._training.processes import ALONE, Processes
from geofloor.language_models._divergence import Targets, row_kls
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._token_rows import TokenRows
from geofloor.language_models._zero_width import ZeroWidthLoss
from geofloor.students._settings import DistillationSettings


class Teacher:
    """A teacher on a device, with the temperature and precision of a distillation.

    Parameters
    ----------
    module : torch.nn.Module
        The model, on the device.
    device : torch.device
        The device.
    settings : DistillationSettings
        Temperature and precision.
    processes : Processes
        Processes that share the evaluation.

    Raises
    ------
    ValueError
        If it takes no token ids or gives no logits, or its unembedding is not finite.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        settings: DistillationSettings,
        processes: Processes = ALONE,
    ) -> None:
        self.model = LanguageModel(module, f"teacher={type(module).__name__}")
        self.module, self.device, self.processes = module, device, processes
        head = self.model.head
        if head is not None and not bool(torch.isfinite(head.weight).all()):
            raise ValueError("The teacher's unembedding is not finite, nor would its logits be; check its weights.")
        self._temperature = settings.temperature
        self._matmul_dtype = torch.bfloat16 if settings.precision == "bf16" else None
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def autocast(self) -> torch.autocast:
        """Make the autocast context of teacher and students."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._matmul_dtype is not None)

    def to_device(self, array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Move an array to the device."""
        tensor = to_device(array, self.device)
        return tensor if dtype is None else tensor.to(dtype)

    @torch.no_grad()
    def compute_targets(self, ids: torch.Tensor, *, keep: bool) -> Targets:
        """Run the teacher on token ids, and remember whether its output was finite.

        Parameters
        ----------
        ids : Tensor of shape (n, seq_len)
            Token ids, on the device.
        keep : bool
            Whether to keep the probabilities for several students.
        """
        with self.autocast():
            logits = self.model.logits(ids)
        # Some logits may be −inf, as in a padded vocabulary; hidden states may not.
        self._finite &= torch.isfinite(logits.rows if logits.weight is not None else logits.rows.amax(dim=1)).all()
        return Targets(logits, self._temperature, keep=keep, matmul_dtype=self._matmul_dtype)

    def was_finite(self) -> bool:
        """Tell whether the targets of all processes have been finite so far. Every process must call it."""
        wrong = (~self._finite).float()
        self.processes.sum([wrong])
        return not bool(wrong)

    @torch.no_grad()
    def sequence_kls(
        self, students: Sequence[LanguageModel], tokens: TokenRows, rows: np.ndarray, *, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the KL of each student on each sequence, in nats, summed over positions.

        Parameters
        ----------
        students : sequence of LanguageModel
            Students, on the device.
        tokens : TokenRows
            Text.
        rows : ndarray of shape (n_sequences,), int
            Sequences of the text.
        batch_size : int
            Sequences per forward pass.

        Returns
        -------
        sums : ndarray of shape (n_students, n_sequences), float64
            KL summed over the positions of each sequence.
        counts : ndarray of shape (n_sequences,), int64
            Number of these positions.
        """
        rows = rows[self.processes.share(len(rows))]
        sums, counts = [torch.zeros((len(students), 0), device=self.device)], [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(rows), batch_size):
            batch = tokens.take(rows[start : start + batch_size])
            ids = self.to_device(batch.ids)
            targets = self.compute_targets(ids, keep=len(students) > 1)
            mask = None if batch.mask is None else self.to_device(batch.mask, targets.dtype)
            found = []
            for student in students:
                with self.autocast():
                    logits = student.logits(ids)
                kls = row_kls(logits, targets).view(ids.shape)
                found.append((kls if mask is None else kls * mask).sum(dim=1))
            sums.append(torch.stack(found))
            counts.append(np.full(len(ids), ids.shape[1]) if batch.mask is None else batch.mask.sum(axis=1))
        shares = self.processes.everyone((torch.cat(sums, dim=1).cpu().double().numpy(), np.concatenate(counts)))
        return np.concatenate([share[0] for share in shares], axis=1), np.concatenate([share[1] for share in shares])

    @torch.no_grad()
    def zero_width_loss(self, tokens: TokenRows, rows: np.ndarray, *, batch_size: int) -> float:
        """Compute the loss of a student of width 0 on some sequences, in nats per token.

        Parameters
        ----------
        tokens : TokenRows
            Text.
        rows : ndarray of shape (n_sequences,), int
            Sequences of the text.
        batch_size : int
            Sequences per forward pass.
        """
        sums = ZeroWidthLoss(self.model.n_vocabulary)
        rows = rows[self.processes.share(len(rows))]
        for start in range(0, len(rows), batch_size):
            batch = tokens.take(rows[start : start + batch_size])
            with self.autocast():
                logits = self.model.logits(self.to_device(batch.ids))
            if batch.mask is not None:
                logits = logits.at(self.to_device(batch.mask.reshape(-1)))
            sums.add(Targets(logits, self._temperature, matmul_dtype=self._matmul_dtype))
        shares = self.processes.everyone((sums.total, sums.negative_entropy, sums.n_positions))
        sums.total, sums.negative_entropy, sums.n_positions = (sum(each) for each in zip(*shares, strict=True))
        return sums.loss()
