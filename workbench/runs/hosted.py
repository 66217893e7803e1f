"""A run whose steps are another program's; its directory gets the checkpoints and metrics.csv that every run holds."""

from __future__ import annotations

from collections.abc import Mapping

from fvcore.common.config import CfgNode
from torch import nn

from workbench.config import config_to_dict
from workbench.data.vocabulary import Vocabulary
from workbench.runs.checkpoint import has_checkpoint, read_description, save_checkpoint
from workbench.runs.directory import MetricsTable, RunDirectory

_COLUMNS = {"time": "seconds", "data_time": "data_seconds"}  # names of detectron2's that have others here


class HostedRun(RunDirectory):
    """The directory at OUTPUT_DIR of ``config``, written to by one process.

    Args:
        config: the workbench's config of the run, which its checkpoints record. vocabulary: their classes.
    """

    def __init__(self, config: CfgNode, vocabulary: Vocabulary) -> None:
        super().__init__(config.OUTPUT_DIR)
        self._config, self._vocabulary = config, vocabulary
        self._table: MetricsTable | None = None
        self._written = 0

    def save(self, model: nn.Module, steps: int, ap: float | None, *, best: bool) -> None:
        """Save the weights after ``steps`` steps as the ``best`` checkpoint or the last; ``ap`` is their mask AP."""
        save_checkpoint(
            self.best if best else self.last,
            model,
            config=config_to_dict(self._config),
            vocabulary=self._vocabulary,
            step=min(steps, self._config.SOLVER.MAX_ITER),
            extra={"metrics": {"segm": {"AP": ap}}},
        )

    def best_ap(self) -> float | None:
        """Return the mask AP of the best checkpoint that is there."""
        metrics = read_description(self.best).metrics if has_checkpoint(self.best) else None
        return ((metrics or {}).get("segm") or {}).get("AP")

    def write(self, scalars: Mapping[str, tuple[float, int]]) -> None:
        """Add {name: (value, steps done before)} to metrics.csv; those of steps that are there already are left out.

        The first call drops the rows of later steps, which a run that was continued had from before.
        """
        rows: dict[int, dict[str, float]] = {}
        for name, (value, before) in scalars.items():
            if before + 1 > self._written:
                rows.setdefault(before + 1, {})[_COLUMNS.get(name, name)] = value
        for step, row in sorted(rows.items()):
            self._table = self._table or MetricsTable(self.metrics, step - 1)
            self._table.write({"step": min(step, self._config.SOLVER.MAX_ITER), **row})
            self._written = step
