"""What was computed once and need not be again: tensors by a digest of everything they depend on, in memory and on disk."""
