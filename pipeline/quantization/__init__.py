"""What the integer precisions of all targets share."""
