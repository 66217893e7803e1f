"""Starting from somebody's weights (MODEL.WEIGHTS), and saying which of them really arrived."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from workbench.errors import WorkbenchError
from workbench.models.weights import LoadReport, load_state, read_state
from workbench.runs.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_BACKBONE = "backbone."


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Copy into ``model`` every weight of ``path`` whose name and shape fit.

    Args:
        path: a checkpoint directory, a run directory, or a .safetensors, .pth or .pt file with a state dict,
            bare or under "model" or "state_dict".

    Returns:
        what was loaded, missing, unexpected and mismatched. A head for other classes is mismatched and stays
        random: that is how a model is fine-tuned to other categories.

    Raises:
        WorkbenchError: it cannot be read, or brings less than nine tenths of the backbone.
    """
    report = load_state(model, _read(Path(path)))
    loaded = sum(name.startswith(_BACKBONE) for name in report.loaded)
    absent = sum(name.startswith(_BACKBONE) for name in report.missing)
    absent += sum(name.startswith(_BACKBONE) for name, _, _ in report.mismatched)
    if loaded < 0.9 * (loaded + absent):
        raise WorkbenchError(
            f"MODEL.WEIGHTS {path}: only {loaded} of the backbone's {loaded + absent} tensors arrived, so "
            f"they belong to another network ({report}); weights of a backbone alone go into "
            "MODEL.MOBILENET.WEIGHTS or MODEL.RESNETS.WEIGHTS"
        )
    return report


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return load_checkpoint(path).state_dict
    return read_state(path)
