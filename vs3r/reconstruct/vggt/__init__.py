"""VGGT: cameras and depth by a network."""
