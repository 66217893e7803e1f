"""Annotation formats other than COCO's instances JSON."""
