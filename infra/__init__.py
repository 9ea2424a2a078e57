"""Image, cluster and the end-to-end run."""
