"""The steps of the pipelines: each is one call into the library, run in the project's one image.

A component imports `b4m` inside its body only, so pipelines compile without torch. Its docstring is
what the Kubeflow UI shows. Annotations follow KFP's reading of them: no `int | None`, no
`Literal`, no postponed evaluation.
"""
