"""From requests (image, condition, draw) to errors, and from errors to what is drawn next: what capabilities share."""
