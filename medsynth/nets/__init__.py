"""Networks without opinions: tensors in, tensors out."""
