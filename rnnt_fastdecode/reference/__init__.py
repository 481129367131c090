"""The specification: every op, the decode loop and the encoder in plain, obvious PyTorch.

Nothing here is fast, nothing here imports the rest of the package, and only tests and benchmarks import it.
"""
