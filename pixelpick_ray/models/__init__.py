"""Segmentation networks on timm backbones."""
