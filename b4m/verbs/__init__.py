"""The verbs: each works on files alone and writes one file or folder that stands alone.

    prepare -> train (content, style) -> merge -> sample -> evaluate -> report
    compare: all of these for contents x styles x methods
    inspect, convert, clean: look at an adapter file, write it for another tool, make it leaner
    extract: an adapter of what a fine-tuning changed

The command line, the Kubeflow components and library users call these same functions. Everything
heavy is imported inside them, so that `b4m --help` needs no torch.
"""

from b4m.verbs.clean import clean
from b4m.verbs.compare import compare
from b4m.verbs.convert import convert
from b4m.verbs.evaluate import evaluate
from b4m.verbs.extract import extract
from b4m.verbs.inspect import inspect
from b4m.verbs.merge import merge
from b4m.verbs.prepare import prepare
from b4m.verbs.report import report
from b4m.verbs.sample import sample
from b4m.verbs.train import train

__all__ = [
    "clean",
    "compare",
    "convert",
    "evaluate",
    "extract",
    "inspect",
    "merge",
    "prepare",
    "report",
    "sample",
    "train",
]
