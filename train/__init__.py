"""From the activation cache to trained SAEs: shards -> batches -> fused variants -> SAE artefacts.

config.py             its settings: variants and what they share
checks.py             the ranges of its numbers
architectures.py      the kinds of SAE, and what is done for dead latents
decoders.py           how far a decoder may move from its start
lambdas.py            the kinds of lambda: here lambda changes
task_lambdas.py       those that answer to the task: their formulas
penalties.py          the kinds of penalty
penalty_term.py       the penalties of the variants trained together
sparsity.py           the coefficient that leads to a wanted L0
schedule.py           learning rate by step
version.py            its version
grid.py               which variants a study has
variants.py           what identifies a variant
run.py                the stage
matched.py            controls with the lambda that another variant's came to
rounds.py             one round of training: controls are the second
reuse.py              which variants need not be trained
plan.py               which variants are stacked, and which groups share a pass
dispatch.py           passes one after another, or on the workers of a Dask cluster
task.py               one pass over the data
loop.py               the loop over steps
group.py              the variants trained together, and one step of them
task_gradients.py     what lambdas need of a step's gradients
hypergradient.py      how a step depended on lambda
lambda_controller.py  the lambdas of all variants, side by side
sparsity_controller.py  their sparsity coefficients
steps/                forward, backward and update of stacked SAEs
metrics.py            what is logged
telemetry.py          where a running training can be watched
checkpoint.py         all that a killed training needs
artefacts.py          a trained group to SAE artefacts
"""
