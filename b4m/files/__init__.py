"""Adapter files: read any tool's, write any tool's."""
