"""Builders of the offline world: EmojiGrid, mini-SDXL and mini-CLIP."""
