"""Networks built on the attention core."""
