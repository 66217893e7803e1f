"""The workbench's datasets in detectron2's catalogs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from fvcore.common.config import CfgNode
from pycocotools import mask as coco_mask

from workbench.config import get_cfg
from workbench.data.catalog import get_entry, known_names
from workbench.data.coco import CocoDataset, load_data
from workbench.data.masks import to_rle
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.visualization.drawing import PALETTE

_loaders: dict[str, Callable[[], CocoDataset]] = {}  # of the names that are the workbench's


def register_known_datasets(root: str = "data") -> None:
    """Register every dataset that the workbench knows by name and detectron2 does not; each is read when it is used."""
    cfg = get_cfg()
    cfg.DATASETS.ROOT = root
    for name in known_names(root):
        if name not in DatasetCatalog:
            _register(name, partial(load_data, cfg, [name], None))


def register_datasets(cfg: CfgNode, vocabulary: Vocabulary | None = None) -> Vocabulary | None:
    """Register the datasets of DATASETS.TRAIN, VAL and TEST, names and paths, as ``cfg`` says they are read.

    A name that the workbench knows becomes the workbench's dataset, also where detectron2 has one of that name. A name
    that only detectron2 knows is left to it.

    Args:
        cfg: the workbench's config, see :func:`workbench.detectron2.workbench_config`.
        vocabulary: a checkpoint's classes; without it they are those of the datasets to train on.

    Returns:
        the classes that the datasets are read for; None where DATASETS.TRAIN is detectron2's.

    Raises:
        WorkbenchError: a name that neither knows, or faults in the data to train on.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]
    own = [name for name in dict.fromkeys(names) if _is_own(name, cfg.DATASETS.ROOT)]
    train = [name for name in cfg.DATASETS.TRAIN if name in own]
    joined = None
    if vocabulary is None and train:
        joined = load_data(cfg, train, None, for_training=True)
        vocabulary = joined.vocabulary
    for name in own:
        if train == [name] and joined is not None and names.count(name) == 1:
            _register(name, lambda: joined)  # read once; only training may leave out its images without objects
        else:
            _register(name, partial(load_data, cfg, [name], vocabulary))
    return vocabulary


def loaded_dataset(name: str) -> CocoDataset | None:
    """Return the workbench's dataset that ``name`` is registered for; None where the name is detectron2's own."""
    return _loaders[name]() if name in _loaders else None


def vocabulary_of(cfg: CfgNode) -> Vocabulary:
    """Return the classes of the first of DATASETS.TRAIN, or else of DATASETS.TEST, from detectron2's metadata.

    ``thing_classes``, ``thing_dataset_id_to_contiguous_id`` and ``subcategory_classes`` are read.

    Raises:
        WorkbenchError: no dataset is named, or its metadata has no ``thing_classes``.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if not hasattr(metadata, "thing_classes") and name in DatasetCatalog:
            DatasetCatalog.get(name)  # which sets the metadata, as detectron2's own datasets do too
        classes = metadata.get("thing_classes")
        if classes is None:
            raise WorkbenchError(f"dataset {name!r} has no thing_classes in detectron2's MetadataCatalog")
        numbers = metadata.get("thing_dataset_id_to_contiguous_id") or {k: k for k in range(len(classes))}
        subcategories = metadata.get("subcategory_classes") or {}
        return Vocabulary(
            tuple(sorted(numbers, key=numbers.get)),
            tuple(classes),
            {subcategory: tuple(values) for subcategory, values in subcategories.items()},
        )
    raise WorkbenchError("the model's classes are those of a dataset: name one in DATASETS.TRAIN or DATASETS.TEST")


def _is_own(name: str, root: str) -> bool:
    try:
        get_entry(name, root)
    except WorkbenchError:
        if name not in DatasetCatalog:
            raise
        return name in _loaders
    return True


def _register(name: str, load: Callable[[], CocoDataset]) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    _loaders[name] = cache(load)
    DatasetCatalog.register(name, partial(_read, name))


def _read(name: str) -> list[dict]:
    """Return a dataset's dicts as detectron2's own mapper takes them, and set its metadata."""
    dataset = _loaders[name]()
    vocabulary, entry = dataset.vocabulary, dataset.entries[0]
    MetadataCatalog.get(name).set(
        thing_classes=list(vocabulary.categories),
        thing_colors=[PALETTE[k % len(PALETTE)] for k in range(vocabulary.num_classes)],
        thing_dataset_id_to_contiguous_id={number: k for k, number in enumerate(vocabulary.category_ids)},
        subcategory_classes={subcategory: list(values) for subcategory, values in vocabulary.subcategories.items()},
        json_file=str(entry.annotations),
        image_root=str(entry.images),
        evaluator_type="coco",
    )
    return [{**item, "annotations": [_plain(a, item) for a in item["annotations"]]} for item in dataset.dicts]


def _plain(annotation: dict, item: dict) -> dict:
    """Return an annotation with a box, and an RLE compressed: a COCO file may lack the one and spell out the other."""
    segmentation = annotation["segmentation"]
    if annotation["bbox"] is None or (isinstance(segmentation, dict) and isinstance(segmentation["counts"], list)):
        rle = to_rle(segmentation, item["height"], item["width"])
        segmentation = segmentation if isinstance(segmentation, list) else rle
        annotation = {**annotation, "bbox": coco_mask.toBbox(rle).tolist(), "segmentation": segmentation}
    return annotation
