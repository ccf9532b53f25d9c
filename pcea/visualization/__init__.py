"""See what a network attends to and predicts: pages, pictures, the window, and their colours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
