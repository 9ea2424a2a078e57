"""B4M's offline world: EmojiGrid, mini-SDXL and mini-CLIP, read and built."""
