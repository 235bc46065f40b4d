"""What the train stage is made of: the loader, augmentation, the optimizer, checkpoints."""
