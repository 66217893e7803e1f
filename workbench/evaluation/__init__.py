"""Scores of predictions: COCO's AP and AR, subcategory metrics, per-image scores, query analysis."""
