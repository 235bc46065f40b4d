"""Random changes of training images: drawn on the host, applied by Pillow in the loader or in batches by the backend.

- `draws`: every random number of a batch, from a numpy generator.
- `operations`: RandAugment's operations, what their magnitude means, and the warps among them as matrices.
- `pillow`: applies the draws to one image.
- `accelerator`: applies the same draws to a batch within the training step.
"""
