"""SDXL and every model of its topology: `family` holds its tables, `model` the base, `load` both.

Nothing is imported here, so that the tables can be had without torch or diffusers.
"""
