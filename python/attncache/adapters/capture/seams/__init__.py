"""Where attention of a running model is heard, without touching the model; recorder.py listens at all of it.

interface.py hears transformers' attention interface. functions.py hears the tensor functions of PyTorch: sdpa.py reads
scaled_dot_product_attention, softmax.py follows the result of a softmax to the matrix product that it is a factor of.
"""
