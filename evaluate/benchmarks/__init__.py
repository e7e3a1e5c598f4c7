"""The benchmarks, one file each. A new one is a file here and its name in the registry; CONTRIBUTING has the rest.

registry.py    all of them, in their order
benchmark.py   what a benchmark is
context.py     what a benchmark may use
core.py        sae-bench core, the language model with and without the SAE
geometry.py    angles between decoder directions
sparse_probing.py             probes on few latents
tpp.py                        latents of one class set to zero
scr.py                        latents of a misleading label set to zero
sparse_probing_sae_probes.py  the tasks of the package sae-probes
autointerp.py  sae-bench autointerp, a judge explaining latents
meta_structure.py  a second SAE, trained on decoder directions
mdl.py             bits of latents in bins
absorption.py      first letters that a narrower latent takes over
ravel.py           one attribute of an entity changed, the others left
unlearning.py      knowledge removed by clamping latents
latents.py         where latents fire, for people to look at
recovery.py        known features found again
"""
