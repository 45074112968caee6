"""Evaluation: tasks as data, metrics with intervals, and runs that can be killed at any moment."""
