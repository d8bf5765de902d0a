"""The HTTP that agents speak to image models, on the host's own server: request -> job -> graph -> the host's queue -> images."""
