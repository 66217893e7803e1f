"""A notebook-driven research workbench for multi-task instance segmentation with Mask2Former."""

__version__ = "0.1.0"
