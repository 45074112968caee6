"""What users trained themselves, on top of a known model."""
