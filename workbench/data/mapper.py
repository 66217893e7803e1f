"""From a dataset dict to a batched input: reading, augmenting, padding.

Image and masks go through one transform call, and both are resized by the same bilinear kernel: a mask is a
picture of 0 and 255 that is cut at one half afterwards. A nearest-neighbour mask would lie up to half a
pixel beside its object. A large photo that ends up at a fraction of its size is read at a half, a quarter or an
eighth, and its masks are averaged alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from workbench.config import PUBLISHED_MAPPERS
from workbench.config_keys import EDGE_MAPPERS
from workbench.data.image_files import ImageRules
from workbench.data.images import REDUCTIONS, read_copy, read_reduced
from workbench.data.masks import decode_mask, mask_cover
from workbench.errors import WorkbenchError
from workbench.registry import MAPPERS

PAD_VALUE = 128
# Decoding a small image and its masks takes longer than augmenting it, so those that fit the budget are kept.
# Large images are not: a dataset of them would not fit, and reading is a small part of their cost.
_CACHED_PIXELS = 256 * 256
_CACHE_BYTES = 256 * 2**20
# An image is reduced to no less than this many times the size it gets, so that the last step still smooths it.
_REDUCTION_MARGIN = 2
_ONE_PIXEL = tv_tensors.Image(torch.zeros(3, 1, 1, dtype=torch.uint8))
_MASKS_AT_ONCE = 48  # bounds the memory of resizing many masks to more than the crop


def reduction_for(height: int, width: int, size: tuple[int, int]) -> int:
    """Return the reduction, 1, 2, 4 or 8, at which to read an image that gets ``size`` (height, width).

    Small images are read whole.
    """
    if height * width <= _CACHED_PIXELS:
        return 1
    shrunk = min(height / size[0], width / size[1]) / _REDUCTION_MARGIN
    return next((reduction for reduction in REDUCTIONS if reduction <= shrunk), 1)


def _resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, *size) uint8, bilinear, antialiased."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    # Channels last in memory: torch's kernel fails on outputs of one pixel when they come first.
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    return F.resize_image(pictures, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


def resize_and_crop_masks(masks: Tensor, size: tuple[int, int], top: int, left: int, crop: tuple[int, int]) -> Tensor:
    """Resize masks to ``size`` as an image is, then cut a window at (top, left).

    Args:
        masks: (N, H, W) bool, or uint8: how much of each pixel is covered, 255 all of it.

    Returns:
        (N, *crop) bool.
    """
    if masks.dtype == torch.bool:
        masks = masks.to(torch.uint8) * 255
    pieces = [masks.new_zeros((0, *crop), dtype=torch.bool)]
    for chunk in masks.split(_MASKS_AT_ONCE):
        # Three masks make one picture, so that the very same kernel runs as for the image.
        spare = -len(chunk) % 3
        pictures = torch.cat([chunk, chunk.new_zeros((spare, *chunk.shape[1:]))])
        pictures = _resize(pictures.view(-1, 3, *chunk.shape[1:]), size)
        pictures = pictures[..., top : top + crop[0], left : left + crop[1]]
        pieces.append(pictures.reshape(-1, *crop)[: len(chunk)] >= 128)
    return torch.cat(pieces)


class ResizeAndCrop(v2.Transform):
    """Resize to a drawn size, cut a drawn window, pad it at the right and bottom; :meth:`draw` says how."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return self.draw(*F.get_size(flat_inputs[0]))

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Return the random ``size``, ``crop``, ``top``, ``left`` and ``padded`` (height, width) of an image."""
        raise NotImplementedError

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the largest (height, width) that an image can be resized to."""
        raise NotImplementedError

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        size, crop, top, left = params["size"], params["crop"], params["top"], params["left"]
        if isinstance(inpt, tv_tensors.Mask):
            resized = resize_and_crop_masks(inpt.as_subclass(Tensor), size, top, left, crop)
            fill = 0
        else:
            resized = _resize(inpt.as_subclass(Tensor)[None], size)[0, :, top : top + crop[0], left : left + crop[1]]
            fill = PAD_VALUE
        padded = resized.new_full((resized.shape[0], *params["padded"]), fill)
        padded[:, : crop[0], : crop[1]] = resized
        return tv_tensors.wrap(padded, like=inpt)


class LargeScaleJitter(ResizeAndCrop):
    """Resize by a random scale, cut a random square window, pad at the right and bottom (Ghiasi et al.
    2021, "Simple Copy-Paste", section 3.2).

    The scale is drawn uniformly from ``min_scale``..``max_scale``; the image is resized, keeping its
    proportions, to the largest that fits a square of scale x ``image_size``; a window of ``image_size`` is
    cut where it is larger, and padded with ``PAD_VALUE`` (masks with False) where it is smaller.
    """

    def __init__(self, image_size: int, min_scale: float, max_scale: float):
        super().__init__()
        self.image_size, self.min_scale, self.max_scale = image_size, min_scale, max_scale

    def draw(self, height: int, width: int) -> dict[str, Any]:
        scale, down, right = torch.rand(3, dtype=torch.float64).tolist()
        scale = self.min_scale + (self.max_scale - self.min_scale) * scale
        size = self.resized(height, width, scale)
        crop = min(size[0], self.image_size), min(size[1], self.image_size)
        return {
            "size": size,
            "crop": crop,
            "top": round((size[0] - crop[0]) * down),
            "left": round((size[1] - crop[1]) * right),
            "padded": (self.image_size, self.image_size),
        }

    def resized(self, height: int, width: int, scale: float | None = None) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to at a scale, by default the largest."""
        factor = (self.max_scale if scale is None else scale) * self.image_size / max(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))


class ShortestEdgeCrop(ResizeAndCrop):
    """Resize the shortest edge to one of a list, cut a random window, pad to a square: Mask2Former's ADE20K recipe.

    Args:
        edges: what the shortest edge is drawn from; with ``sampling`` "range" from the first to the second of them.
        longest: the longest edge never exceeds it.
        sampling: "choice" or "range".
        crop: None cuts nothing; (type, size), with detectron2's meanings: "absolute" pixels, "relative" shares of the
            image, "relative_range" shares from ``size`` to 1, "absolute_range" pixels from ``size[0]`` to ``size[1]``
            each way.
        square: side that the window is cut at the right and bottom, or padded, to; -1 leaves it.
    """

    def __init__(
        self,
        edges: Sequence[int],
        longest: int,
        *,
        sampling: str = "choice",
        crop: tuple[str, Sequence[float]] | None = None,
        square: int = -1,
    ):
        super().__init__()
        self.edges, self.longest, self.sampling, self.crop, self.square = tuple(edges), longest, sampling, crop, square

    def draw(self, height: int, width: int) -> dict[str, Any]:
        edge, tall, wide, down, right = torch.rand(5, dtype=torch.float64).tolist()
        if self.sampling == "range":
            edge = _between(self.edges[0], self.edges[1], edge)
        else:
            edge = self.edges[_between(0, len(self.edges) - 1, edge)]
        size = resize_to_edge(height, width, edge, self.longest)
        window = self._window(size, tall, wide)
        top, left = _between(0, size[0] - window[0], down), _between(0, size[1] - window[1], right)
        padded = window if self.square < 0 else (self.square, self.square)
        crop = min(window[0], padded[0]), min(window[1], padded[1])
        return {"size": size, "crop": crop, "top": top, "left": left, "padded": padded}

    def _window(self, size: tuple[int, int], tall: float, wide: float) -> tuple[int, int]:
        """Return the (height, width) of the window; ``tall`` and ``wide`` are random, in [0, 1)."""
        kind, sides = self.crop or ("relative", (1.0, 1.0))
        if kind == "absolute":
            return min(int(sides[0]), size[0]), min(int(sides[1]), size[1])
        if kind == "absolute_range":
            least, most = (tuple(min(int(side), edge) for edge in size) for side in sides)
            return _between(least[0], most[0], tall), _between(least[1], most[1], wide)
        shares = tuple(sides)
        if kind == "relative_range":
            shares = sides[0] + tall * (1 - sides[0]), sides[1] + wide * (1 - sides[1])
        return max(1, int(size[0] * shares[0] + 0.5)), max(1, int(size[1] * shares[1] + 0.5))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        return resize_to_edge(height, width, max(self.edges), self.longest)


def _between(low: int, high: int, share: float) -> int:
    """Return the whole number from ``low`` to ``high``, both included, that ``share`` in [0, 1) falls on."""
    return low + int(share * (high - low + 1))


def resize_to_edge(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return the (height, width) with the shortest edge ``shortest``, or where the other edge would exceed ``longest``
    (0: no limit) with that as the longest; rounded as in detectron2."""
    factor = shortest / min(height, width)
    tall, wide = (shortest, factor * width) if height < width else (factor * height, shortest)
    if longest and max(tall, wide) > longest:
        factor = longest / max(tall, wide)
        tall, wide = factor * tall, factor * wide
    return max(1, int(tall + 0.5)), max(1, int(wide + 0.5))


class SSDColour(v2.Transform):
    """SSD's distortion of colours (Liu et al., 2016, section 2.2), as Mask2Former has it.

    With probability one half each: brightness moves by up to 32 of 255, contrast and saturation are multiplied by 0.5
    to 1.5, and hue turns by up to 36 degrees; contrast comes second or last. Values are cut to 0-255 after each step.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"draws": torch.rand(9, dtype=torch.float64).tolist()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        brightness, contrast, saturation, hue, contrast_second, *amounts = params["draws"]
        picture = inpt.as_subclass(Tensor).permute(1, 2, 0).numpy()
        if brightness < 0.5:
            picture = _as_bytes(picture.astype(np.float32) + (amounts[0] * 64 - 32))
        second = contrast_second < 0.5
        if second and contrast < 0.5:
            picture = _as_bytes(picture.astype(np.float32) * (0.5 + amounts[1]))
        if min(saturation, hue) < 0.5:
            hsv = np.array(Image.fromarray(np.ascontiguousarray(picture)).convert("HSV"))
            if saturation < 0.5:
                hsv[..., 1] = _as_bytes(hsv[..., 1].astype(np.float32) * (0.5 + amounts[2]))
            if hue < 0.5:  # Pillow's hue has 256 values, and an unsigned sum of bytes goes round
                hsv[..., 0] += np.uint8(round((amounts[3] * 2 - 1) * 25.6) % 256)
            picture = np.array(Image.frombytes("HSV", hsv.shape[1::-1], hsv.tobytes()).convert("RGB"))
        if not second and contrast < 0.5:
            picture = _as_bytes(picture.astype(np.float32) * (0.5 + amounts[1]))
        return tv_tensors.wrap(_to_tensor(picture), like=inpt)


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _colour_transforms(jitter: bool, ssd: bool) -> list[v2.Transform]:
    """``jitter``: a little of everything, with a hue shift too small to turn one colour class into another."""
    transforms: list[v2.Transform] = []
    if jitter:
        transforms.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.015))
    return [*transforms, SSDColour()] if ssd else transforms


def _read_checked(dataset_dict: dict, rules: ImageRules, reduction: int = 1, kept: int = 1) -> np.ndarray:
    """Read an image at 1/``reduction`` of its size; of the cached copy at 1/``kept`` where there is one."""
    said = (dataset_dict["height"], dataset_dict["width"])
    if rules.cache is None or kept == 1:
        picture, size = read_reduced(dataset_dict["file_name"], reduction, rules)
    else:
        picture, size = read_copy(dataset_dict["file_name"], said, reduction, kept, rules.cache, rules)
    if size != said:
        raise WorkbenchError(
            f"The image {dataset_dict['file_name']} (id {dataset_dict['image_id']}) is {size[1]}x{size[0]} "
            f"but the dataset says {said[1]}x{said[0]} (width x height)."
        )
    return picture


def _to_tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


class _Decoded:
    """Decoded images and their object masks (packed to bits), up to ``_CACHE_BYTES`` in each process."""

    def __init__(self, rules: ImageRules) -> None:
        self._rules = rules
        self._held: dict[tuple, tuple[Tensor, np.ndarray]] = {}
        self._bytes = 0

    def __call__(self, dataset_dict: dict, things: list[dict], reduction: int, kept: int) -> tuple[Tensor, Tensor]:
        """Return the image (3, H, W) uint8 and the masks (N, H, W) bool of ``things``, not to be written to.

        ``kept`` is the reduction of the copy in the cache. Above reduction 1 both have the reduced size, and masks are
        uint8: how much of each pixel is covered.
        """
        height, width = dataset_dict["height"], dataset_dict["width"]
        if reduction > 1:
            image = _to_tensor(_read_checked(dataset_dict, self._rules, reduction, kept))
            covers = np.zeros((len(things), *image.shape[1:]), dtype=np.uint8)
            for cover, thing in zip(covers, things, strict=True):
                cover[:] = mask_cover(thing["segmentation"], height, width, reduction)
            return image, torch.from_numpy(covers)
        key = (dataset_dict["file_name"], *(thing["id"] for thing in things))
        if key in self._held:
            image, packed = self._held[key]
            masks = np.unpackbits(packed, axis=-1, count=width).view(bool)
            return image, torch.from_numpy(masks)
        image = _to_tensor(_read_checked(dataset_dict, self._rules))
        masks = np.zeros((len(things), height, width), dtype=bool)
        for mask, thing in zip(masks, things, strict=True):
            mask[:] = decode_mask(thing["segmentation"], height, width)
        if height * width <= _CACHED_PIXELS:
            packed = np.packbits(masks, axis=-1)
            size = image.numel() + packed.nbytes
            if self._bytes + size <= _CACHE_BYTES:
                self._held[key] = image, packed
                self._bytes += size
        return image, torch.from_numpy(masks)


class TrainMapper:
    """Read and augment one image for training.

    ``mapper(dataset_dict, seed)`` returns ``image`` (3, S, S') uint8 RGB, the original ``height`` and ``width``,
    ``file_name``, ``image_id``, ``seed`` and ``targets``: ``labels`` (N,) int64, ``masks`` (N, S, S') bool,
    ``annotation_ids`` (N,) int64 as in the dataset file, ``subcategories`` {name: (N,) int64, -1 unlabelled}. Crowds,
    and objects of which nothing is left in the window, are not among the N.

    Image and masks are flipped, and the image's colours changed, before ``geometry`` resizes and cuts both.

    Everything random depends on ``seed`` alone; the global random state is left as it was. ``rules`` say how
    image files are read; where they name a cache, photos larger than ever needed are read from reduced copies in it.
    """

    def __init__(
        self,
        geometry: ResizeAndCrop,
        *,
        random_flip: str = "horizontal",
        color_jitter: bool = False,
        color_aug_ssd: bool = False,
        rules: ImageRules | None = None,
    ):
        flips = {
            "horizontal": [v2.RandomHorizontalFlip()],
            "vertical": [v2.RandomVerticalFlip()],
            "none": [],
        }
        if random_flip not in flips:
            raise WorkbenchError(f"INPUT.RANDOM_FLIP is {random_flip!r}; it is one of {', '.join(flips)}.")
        self._decode = _Decoded(rules or ImageRules())
        self._before = [*flips[random_flip], *_colour_transforms(color_jitter, color_aug_ssd)]
        self._geometry = geometry
        self.transform = v2.Compose([*self._before, geometry])

    def _reductions(self, height: int, width: int, seed: int) -> tuple[int, int]:
        """Return the reduction to read an image at, and the one that serves every seed.

        The size is drawn as the transform will draw it from this seed.
        """
        if height * width <= _CACHED_PIXELS:
            return 1, 1
        torch.default_generator.manual_seed(seed)
        for transform in self._before:
            transform(_ONE_PIXEL)  # draws as many numbers as for a whole image
        drawn, largest = self._geometry.draw(height, width)["size"], self._geometry.resized(height, width)
        return reduction_for(height, width, drawn), reduction_for(height, width, largest)

    def __call__(self, dataset_dict: dict, seed: int) -> dict:
        height, width = dataset_dict["height"], dataset_dict["width"]
        # Dicts that detectron2 has read have neither ids nor subcategories, and not always ``iscrowd``.
        things = [{"id": k, **a} for k, a in enumerate(dataset_dict["annotations"]) if not a.get("iscrowd")]
        with torch.random.fork_rng(devices=[]):
            image, masks = self._decode(dataset_dict, things, *self._reductions(height, width, seed))
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would wake every accelerator
            image, moved = self.transform(tv_tensors.Image(image), tv_tensors.Mask(masks))
        moved = moved.as_subclass(Tensor)
        kept = moved.view(torch.uint8).flatten(1).amax(dim=1) > 0  # any() takes twenty times as long
        things = [thing for thing, left in zip(things, kept.tolist(), strict=True) if left]
        return {
            "image": image.as_subclass(Tensor),
            "height": height,
            "width": width,
            "file_name": dataset_dict["file_name"],
            "image_id": dataset_dict["image_id"],
            "seed": seed,
            "targets": {
                "labels": torch.tensor([t["category_id"] for t in things], dtype=torch.int64),
                "masks": moved[kept],
                "annotation_ids": torch.tensor([t["id"] for t in things], dtype=torch.int64),
                "subcategories": {
                    name: torch.tensor([t["subcategories"][name] for t in things], dtype=torch.int64)
                    for name in dataset_dict.get("subcategories", ())
                },
            },
        }


class TestMapper:
    """Reads and resizes one image for evaluation.

    ``mapper(dataset_dict)`` returns ``image`` (3, H, W) uint8 RGB, its shortest edge ``min_size`` unless
    the longest would exceed ``max_size`` (``min_size`` 0: as it is; ``max_size`` 0: no limit), the original
    ``height`` and ``width``, ``file_name`` and ``image_id``. ``rules`` are those of :class:`TrainMapper`.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    def __init__(self, *, min_size: int = 800, max_size: int = 1333, rules: ImageRules | None = None):
        self.min_size, self.max_size, self.rules = min_size, max_size, rules or ImageRules()

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is resized to."""
        if not self.min_size:
            return height, width
        return resize_to_edge(height, width, self.min_size, self.max_size)

    def resize(self, picture: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Resize a (H, W, 3) uint8 RGB array to a (3, H', W') uint8 tensor; ``size`` is by default its output size."""
        return _resize(_to_tensor(picture)[None], size or self.output_size(*picture.shape[:2]))[0].contiguous()

    def __call__(self, dataset_dict: dict) -> dict:
        height, width = dataset_dict["height"], dataset_dict["width"]
        size = self.output_size(height, width)
        reduction = reduction_for(height, width, size)
        picture = _read_checked(dataset_dict, self.rules, reduction, reduction)
        return {
            "image": self.resize(picture, size),
            "height": dataset_dict["height"],
            "width": dataset_dict["width"],
            "file_name": dataset_dict["file_name"],
            "image_id": dataset_dict["image_id"],
        }


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[..., dict]:
    """Return the mapper that a config names and its ``INPUT`` keys describe."""
    return MAPPERS[cfg.INPUT.DATASET_MAPPER_NAME](cfg, is_train)


@MAPPERS.register(*PUBLISHED_MAPPERS)
def build_instance_mapper(cfg: CfgNode, is_train: bool) -> TrainMapper | TestMapper:
    """Return a :class:`TrainMapper`, or for evaluation a :class:`TestMapper`, of the ``INPUT`` keys."""
    keys, rules = cfg.INPUT, ImageRules.from_config(cfg)
    if not is_train:
        return TestMapper(min_size=keys.MIN_SIZE_TEST, max_size=keys.MAX_SIZE_TEST, rules=rules)
    if keys.DATASET_MAPPER_NAME in EDGE_MAPPERS:
        geometry = ShortestEdgeCrop(
            keys.MIN_SIZE_TRAIN,
            keys.MAX_SIZE_TRAIN,
            sampling=keys.MIN_SIZE_TRAIN_SAMPLING,
            crop=(keys.CROP.TYPE, keys.CROP.SIZE) if keys.CROP.ENABLED else None,
            square=keys.SIZE_DIVISIBILITY,
        )
    else:
        geometry = LargeScaleJitter(keys.IMAGE_SIZE, keys.MIN_SCALE, keys.MAX_SCALE)
    return TrainMapper(
        geometry,
        random_flip=keys.RANDOM_FLIP,
        color_jitter=keys.COLOR_JITTER,
        color_aug_ssd=keys.COLOR_AUG_SSD,
        rules=rules,
    )
