"""Base models: one folder is one family."""
