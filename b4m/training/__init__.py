"""Training: one loop for adapters and for masks, its checkpoints, examples and denoising losses."""
