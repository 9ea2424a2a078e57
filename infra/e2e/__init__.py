"""The whole in containers, with real servers."""
