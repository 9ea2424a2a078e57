"""Scores of sampled pictures: encoders, pure functions on features, statistics, provenance.

`score.evaluate` is the verb. `encoders` is the only module that imports open_clip; `scores` and
`statistics` know neither pictures nor files.
"""
