"""Theory: noise levels, predictions, weights and noise. Tensors in, tensors out; nothing here knows a model."""
