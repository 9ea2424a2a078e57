"""B4M: content and style customization of text-to-image models with low-rank adapters."""

from b4m import torchvision_guard

__version__ = "0.1.0"

torchvision_guard.install()
