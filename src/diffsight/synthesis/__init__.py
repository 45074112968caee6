"""Classifiers from class names alone: synthetic training sets, and ordinary networks trained on them."""
