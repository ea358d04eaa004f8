"""Our PMT against recorded outputs of the published code: run every case of a folder and say how far apart they are.

`runner.run_folder` is the way in. A case is a `.json` and a `.safetensors` of one name; what it is, is told by the
tensors and facts in it, never by its name.
"""
