"""Adapters: one module for each family of pipelines, and what several of them share."""
