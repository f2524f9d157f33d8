"""VS3R: full-frame video stabilization by deep 3D reconstruction.

Importing this package is cheap; torch, OpenCV and PyAV are loaded by the modules that use them.
"""

__version__ = "0.1.0"
