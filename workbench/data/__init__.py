"""Datasets: the catalog, COCO reading and validation, the mapper, the loaders and the generated shapes."""
