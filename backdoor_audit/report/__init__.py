"""Pure functions that draw: records and tensors in, text, pictures and pages out."""
