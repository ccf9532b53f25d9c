"""See what a network attends to and predicts: pictures, the window, and the colours they use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
