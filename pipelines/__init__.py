"""Pictures of the data's way: which component feeds which. Needs kfp alone; never torch, never b4m.

`python -m pipelines compile | run | submit`.
"""
