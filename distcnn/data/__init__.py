"""Images: opened by `sources`, varied by `augment`, fed by `pipeline`."""
