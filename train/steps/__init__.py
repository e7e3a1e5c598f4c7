"""One step of stacked SAEs: weights (variants, latents, d_model), one shared batch.

protocol.py    what a group needs of a step
make.py        which step serves which kind of SAE, and how much memory a group takes
input.py       rows of the store to the input of a step
initialise.py  where the weights start
analytic.py    relu, topk, batchtopk: hand-written backward
autograd.py    jumprelu, matryoshka-batchtopk, gated: backward by autograd
topk.py        the largest of a row or of a batch
auxk.py        the auxiliary loss of dead latents
resample.py    dead latents that start anew
adam.py        Adam with unit decoder rows
hold.py        decoders that are held at or near where they started
"""
