"""What comes in: images decoded safely, sources of samples with stable ids, class names and prompts."""
