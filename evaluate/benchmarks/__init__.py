"""The benchmarks, one file each. A new one is a file here and an entry in the registry; CONTRIBUTING has the rest.

registry.py  the benchmarks that run, and those to come
context.py   what a benchmark is given and gives back
core.py      sae-bench core, the language model with and without the SAE
geometry.py  angles between decoder directions
"""
