"""Pipelines: which component feeds which, and how a pipeline is planned, compiled, run, submitted.

Of the library only what decides or records without computing is imported: `b4m.plan`,
`b4m.shards`, `b4m.settings`, `b4m.io`, `b4m.errors` and, to run, `b4m.tracking`; never torch.
"""
