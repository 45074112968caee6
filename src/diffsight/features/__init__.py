"""Frozen diffusion features: extraction, cache, heads, probes, search and CKA."""
