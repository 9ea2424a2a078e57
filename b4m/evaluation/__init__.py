"""Scores of generated images: encoders, pure functions on features, statistics, provenance.

`evaluate.evaluate` is the verb. `encoders` is the only module that imports open_clip; `metrics`
and `statistics` know neither images nor files; `tables` owns the format of the scores folder.
"""
