"""The benchmarks, one file each. A new one is a file here and its name in the registry; CONTRIBUTING has the rest.

registry.py   all of them, in their order
benchmark.py  what a benchmark is
context.py    what a benchmark may use
core.py       sae-bench core, the language model with and without the SAE
geometry.py   angles between decoder directions
latents.py    where latents fire, for people to look at
"""
