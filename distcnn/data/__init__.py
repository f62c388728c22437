"""Image data: sources, caching, augmentation and the input pipeline."""
