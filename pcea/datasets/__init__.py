"""Datasets: tensors of labelled clouds, and the readers that make them."""
