"""The README's table of backbones: size, arithmetic, feature maps, latency and the memory of a training step.

    python benchmarks/backbones.py                       one image of 256x256 on the CPU
    python benchmarks/backbones.py --size 512 timm/convnext_tiny

Parameters are the backbone's own. FLOPs are fvcore's: a multiply-add counts once, and operators it does not know,
such as softmax, count nothing. Latency is the median of an inference of one image. The memory of a training step is
what autograd keeps of one image between the forward and the backward pass, and 16 bytes a parameter: its weight, its
gradient and AdamW's two averages, in float32.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from workbench.config import load_config
from workbench.models.backbones import measure
from workbench.models.build import build_backbone


def _swin(dim: int, depth: int, heads: int, window: int) -> list[str]:
    heads_of_stages = [heads * 2**stage for stage in range(4)]
    sizes = {"EMBED_DIM": dim, "DEPTHS": [2, 2, depth, 2], "NUM_HEADS": heads_of_stages, "WINDOW_SIZE": window}
    keys = [text for key, value in sizes.items() for text in (f"MODEL.SWIN.{key}", str(value))]
    return ["MODEL.BACKBONE.NAME", "D2SwinTransformer", *keys]


BACKBONES = {
    "ResNet-18": ["MODEL.RESNETS.DEPTH", "18"],
    "ResNet-50": ["MODEL.RESNETS.DEPTH", "50"],
    "ResNet-101": ["MODEL.RESNETS.DEPTH", "101"],
    "MobileNetV3-L": ["MODEL.BACKBONE.NAME", "build_mobilenet_v3_large_backbone"],
    "Swin-T": _swin(96, 6, 3, 7),
    "Swin-S": _swin(96, 18, 3, 7),
    "Swin-B": _swin(128, 18, 4, 12),
    "Swin-L": _swin(192, 18, 6, 12),
}


def kept_bytes(backbone: nn.Module, image: Tensor) -> int:
    """Return the bytes that autograd keeps of a forward pass, the parameters and buffers aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone.train()(image)  # held until the storages are counted
    total = sum(storages.values())
    del features
    return total


def row(name: str, overrides: list[str], size: int, repeats: int) -> str:
    """Return a row of the table."""
    torch.manual_seed(0)
    backbone = build_backbone(load_config(None, overrides), pretrained=False)
    shapes = measure(backbone).values()
    parameters = sum(p.numel() for p in backbone.parameters())
    image = torch.randn(1, 3, size, size)
    memory = kept_bytes(backbone, image) + 16 * parameters
    backbone.eval()
    seconds = []
    with torch.no_grad():
        flops = FlopCountAnalysis(backbone, image).unsupported_ops_warnings(False).total()
        for _ in range(repeats + 1):
            start = time.perf_counter()
            backbone(image)
            seconds.append(time.perf_counter() - start)
    cells = [
        name,
        f"{parameters / 1e6:.1f} M",
        f"{flops / 1e9:.1f} G",
        ", ".join(str(shape.channels) for shape in shapes),
        ", ".join(str(shape.stride) for shape in shapes),
        f"{1000 * statistics.median(seconds[1:]):.0f} ms",  # the first one warms up
        f"{memory / 1e6:.0f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows of the table, or timm/<name>; by default the whole table")
    parser.add_argument("--size", type=int, default=256, help="height and width of the image, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    print(f"one image of {options.size}x{options.size}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| Backbone | Parameters | FLOPs | Channels | Strides | Inference | Memory of a step |")
    print("| --- | ---: | ---: | --- | --- | ---: | ---: |")
    for name in options.names or BACKBONES:
        print(row(name, BACKBONES.get(name, ["MODEL.BACKBONE.NAME", name]), options.size, options.repeats), flush=True)


if __name__ == "__main__":
    main()
