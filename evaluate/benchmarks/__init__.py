"""The benchmarks, one file each. A new one is a file here and its name in the registry; CONTRIBUTING has the rest.

registry.py   all of them, in their order
benchmark.py  what a benchmark is
context.py    what a benchmark may use
core.py       sae-bench core, the language model with and without the SAE
geometry.py   angles between decoder directions
sparse_probing.py             probes on few latents
tpp.py                        latents of one class set to zero
scr.py                        latents of a misleading label set to zero
sparse_probing_sae_probes.py  the tasks of the package sae-probes
"""
