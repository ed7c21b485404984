"""Segmentation networks and heads on timm backbones."""
