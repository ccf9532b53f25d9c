"""Attention layers and what stands around them: tokens (B, N, C) to tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
