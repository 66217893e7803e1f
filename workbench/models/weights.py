"""Weights into a module, with a report of each tensor."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torchvision.models import WeightsEnum

from workbench.errors import WorkbenchError
from workbench.weights.download import torchvision_entry, torchvision_file, torchvision_place
from workbench.weights.naming import UNDIVIDED, recognise
from workbench.weights.reading import read_state

_log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """Which tensors of a module a state dict had. ``mismatched`` holds name, shape in the module, shape in the file."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def parts(self) -> dict[str, tuple[int, int]]:
        """Return {part of the model: (tensors loaded, tensors that it has)}."""
        counts: dict[str, tuple[int, int]] = {}
        absent = [*self.missing, *(name for name, _, _ in self.mismatched)]
        for names, arrived in ((self.loaded, 1), (absent, 0)):
            for name in names:
                part = name.split(".")[0]
                loaded, total = counts.get(part, (0, 0))
                counts[part] = loaded + arrived, total + 1
        return counts

    def __str__(self) -> str:
        parts = []
        for kind in ("loaded", "missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            shown = [f"{n[0]} {list(n[2])} for {list(n[1])}" if isinstance(n, tuple) else n for n in names[:3]]
            detail = f" ({', '.join(shown)}{', ...' if len(names) > 3 else ''})" if names and kind != "loaded" else ""
            parts.append(f"{len(names)} {kind}{detail}")
        text = "; ".join(parts)
        counts = self.parts()
        if "backbone" not in counts:  # the report of one part
            return text
        heads = dict.fromkeys(name.rpartition(".")[0] for name, _, _ in self.mismatched)
        anew = f"; of other sizes, so new: {', '.join(heads)}" if heads else ""
        arrived = ", ".join(f"{part} {loaded} of {total}" for part, (loaded, total) in counts.items())
        return f"{arrived} tensors{anew}; {text}"


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy every tensor whose name and shape fit into ``module`` and return what happened to each."""
    own = module.state_dict()
    counter = "num_batches_tracked"  # of batches, which older weights and frozen norms lack
    report = LoadReport(unexpected=[name for name in state if name not in own and not name.endswith(counter)])
    fitting = {}
    for name, tensor in own.items():
        if name not in state:
            if not name.endswith(counter):
                report.missing.append(name)
        elif state[name].shape != tensor.shape:
            report.mismatched.append((name, tuple(tensor.shape), tuple(state[name].shape)))
        else:
            fitting[name] = state[name]
            report.loaded.append(name)
    module.load_state_dict(fitting, strict=False)
    return report


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WorkbenchError naming the tensors of a state dict that hold NaN or infinity."""
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WorkbenchError(f"{source}: {len(wrong)} tensors hold NaN or infinity ({', '.join(wrong[:3])}{more})")


def require_backbone(report: LoadReport, source: str, *, prefix: str = "", hint: str = "") -> None:
    """Raise WorkbenchError unless nine tenths of the backbone's tensors, those named ``prefix...``, were loaded."""
    not_loaded = [*report.missing, *(name for name, _, _ in report.mismatched)]
    loaded, absent = (sum(name.startswith(prefix) for name in names) for names in (report.loaded, not_loaded))
    if loaded < 0.9 * (loaded + absent):
        raise WorkbenchError(
            f"weights {source}: only {loaded} of the backbone's {loaded + absent} tensors were loaded, so they belong "
            f"to another network ({report}){hint}"
        )


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load the weights of a backbone, in any of the namings of :func:`recognise`, and log the report.

    Raises:
        WorkbenchError: less than nine tenths of the backbone's tensors were loaded, or they are for pixels that are not
            divided by a deviation.
    """
    recognised = recognise(state)
    if recognised.pixel_std == UNDIVIDED:
        raise WorkbenchError(
            f"weights {source} ({recognised.kind}) are for pixels that are not divided by PIXEL_STD: name them in "
            "MODEL.WEIGHTS, which adapts them"
        )
    report = load_state(backbone, backbone_part(recognised.state, backbone))
    require_backbone(report, source)
    _log.info("backbone weights %s (%s): %s", source, recognised.kind, report)
    return report


def backbone_part(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return the tensors named ``backbone...``, without that, and without layers after a MobileNet's last tap.

    Where no name begins so, all of them are the backbone's.
    """
    cut = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")} or state
    if hasattr(backbone, "features"):
        layers = len(backbone.features)
        cut = {n: t for n, t in cut.items() if not n.startswith("features.") or int(n.split(".")[1]) < layers}
    return cut


def torchvision_state(network: str, weights: str) -> dict[str, Tensor]:
    """Return the published weights of one of torchvision's networks, from its cache or downloaded.

    Args:
        network: "mobilenet_v3_large", "resnet50", ...
        weights: "imagenet" (classification, V1 for ResNet as detectron2 has them) or "deeplabv3" (segmentation).
    """
    return read_state(torchvision_file(_entry(network, weights)))


def weights_at_hand(network: str, weights: str, timeout: float = 5.0) -> bool:
    """Return whether :func:`torchvision_state` can have these weights: from its cache, or from a server that answers
    within ``timeout`` seconds."""
    entry = _entry(network, weights)
    if torchvision_place(entry).is_file():
        return True
    request = urllib.request.Request(entry.url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status == 200
    except OSError:  # URLError is one
        return False


def _entry(network: str, weights: str) -> WeightsEnum:
    return torchvision_entry(network if weights == "imagenet" else f"{weights}_{network}")
