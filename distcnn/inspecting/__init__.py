"""A report on images before training: what there is, what is damaged, what leaks."""
