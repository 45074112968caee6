"""Encoders to compare with: CLIP, SigLIP and DINOv2."""
