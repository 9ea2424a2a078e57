"""A family beside SDXL in little: a flow-matching DiT of two of Stable Diffusion 3's blocks.

It shows what a new family provides (`b4m.bases`), and is small enough for a test to train.
"""
