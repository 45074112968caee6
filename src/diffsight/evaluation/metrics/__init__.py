"""From answers to numbers with their uncertainty: numpy and scipy alone; no model, no image."""
