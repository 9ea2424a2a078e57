"""Adapter files: read any tool's, write any tool's, strict about what they do not understand."""

from b4m.files.clean import pruned, without_intruders
from b4m.files.describe import describe
from b4m.files.extract import extract_adapter
from b4m.files.overlap import compare_files
from b4m.files.read import read_adapter
from b4m.files.translate import read_together
from b4m.files.write import with_rank, write_adapter

__all__ = [
    "compare_files",
    "describe",
    "extract_adapter",
    "pruned",
    "read_adapter",
    "read_together",
    "with_rank",
    "without_intruders",
    "write_adapter",
]
