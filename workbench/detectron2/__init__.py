"""The detectron2 host: the workbench's parts in detectron2's registries, catalogs, loaders and trainer.

Importing this package registers the backbones, the models and the named datasets. docs/detectron2.md has examples.
"""

from workbench.environment.problems import GET_DETECTRON2

try:
    import detectron2.config  # noqa: F401  (a folder named detectron2 on the path would be imported as an empty package)
except ImportError as error:
    raise ImportError(
        f"workbench.detectron2 needs detectron2, which cannot be imported ({error}): {GET_DETECTRON2}"
    ) from error

from workbench.detectron2.config import add_workbench_config, workbench_config
from workbench.detectron2.data import register_datasets
from workbench.detectron2.modeling import register_parts

__all__ = ["add_workbench_config", "register_datasets", "register_parts", "workbench_config"]

register_parts()
register_datasets()
