"""Open a file or folder, name what it holds, and stream its tensors under canonical names."""
