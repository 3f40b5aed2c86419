"""What the engines on this machine share: many sequences on one context, in one mixed batch a step.

`driver.py` is the kernel's side of an engine, `child.py` its process, `frames.py` the protocol
between them. The process loads a model by drivers/llama or drivers/openvino, which implement
`context.py`: a vocabulary, a context, samplers. Both sides import this package, so it imports no
library of an engine.
"""
