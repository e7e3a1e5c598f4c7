"""From the activation cache to trained SAEs.

config.py         its settings: variants and what they share
checks.py         the ranges of its numbers
architectures.py  the kinds of SAE, and the remedies for dead latents
lambdas.py        the kinds of lambda
penalties.py      the kinds of penalty
variants.py       grids, and what identifies a variant
schedule.py       learning rate by step
initialise.py     where the weights start
batches.py        rows of the store to the input of a step
engine.py         what a step of any kind offers, and the memory that it takes
fused.py          relu, topk, batchtopk: forward and hand-written backward of all variants at once
select.py         the largest of a row or of a batch
stacked.py        jumprelu, matryoshka-batchtopk, gated: autograd on stacked parameters
resample.py       dead latents that start anew
controllers.py    the lambdas of all variants, side by side
optimizer.py      Adam with unit decoder rows
group.py          the variants trained together, and one step of them
metrics.py        what is logged
loop.py           the loop over steps
checkpoint.py     all that a killed training needs, in files that are kept for a while
telemetry.py      where a running training can be watched
tensorboard.py    TensorBoard's event files
grouping.py       which variants are stacked, and how many groups share a pass
task.py           one pass over the data, here or on a worker
dispatch.py       tasks one after another, or on the workers of a Dask cluster
reuse.py          which variants need not be trained
artefacts.py      a trained group to SAE artefacts
export.py         artefacts to a folder for a model hub
run.py            the stage
"""
