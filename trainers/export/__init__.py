"""A trained model as safetensors, ONNX or torch.export, compared with the original.

Imports `run`, `networks` and the root of `trainers`.
Enter at `export`; `formats` lists the formats, `model_card` writes the README.
"""
