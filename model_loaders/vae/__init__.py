"""The FLUX.2 autoencoder's file: its header, names and widths."""
