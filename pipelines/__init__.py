"""Pipelines: which component feeds which, and how a pipeline is planned, compiled, run, submitted.

Of the library only what decides without computing is imported: `b4m.plan`, `b4m.shards`,
`b4m.settings`, `b4m.errors`; never torch.
"""
