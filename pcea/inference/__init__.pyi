from .networks import TrainedNetwork, load_network

__all__ = ["TrainedNetwork", "load_network"]
