"""Lightning modules: what is learned, from which loss, measured how."""
