"""Networks as engines: built for one shape, one machine and one version, tested against PyTorch, kept in a cache.

models.py has what can be exported, build.py makes, tests and keeps engines, runtime.py chooses how a network runs;
aoti.py, onnx_file.py and tensorrt_engine.py are the formats, each with the functions that build.Format lists.
"""
