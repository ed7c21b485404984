"""Active learning for semantic segmentation from a few labelled pixels an image, on Ray Tune."""

__version__ = "0.2.0"
