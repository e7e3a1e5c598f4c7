"""From trained SAEs to benchmark results, and from results to the report.

config.py               its settings, one record per benchmark
run.py                  the stage: one benchmark over all variants
task.py                 one SAE and one benchmark, here or on a worker
reuse.py                results that need no measuring
kept.py                 what SAEs share, kept on disk
loaded_model.py         the language model as benchmarks use it
dependencies.py         what a result depends on: cards, held-out tokens
results.py              the files a benchmark leaves
substituted.py          another value in a library's place
throw_away.py           an SAE that fills sae-bench's caches
isolation.py            random states and the like, as before each benchmark
jackknife.py            errors from the text or tasks measured on
row_statistics.py       sums over held-out rows
held_out_rows.py        the cache's rows, as sae-bench core reads them
language_model_loss.py  losses with and without the SAE
hub_data.py             data sets of a hub, fetched once
meaningful.py           models and SAEs that are too small
output_dtype.py         SAEs in a bfloat16 language model
upper_layers.py         a language model run from the hook on
memo.py                 activations of a language model, kept by their tokens
explained_latents.py    sae-bench's autointerp with a judge of ours
sae_bench.py            our artefact as a sae-bench SAE
references.py           published results
reference_check.py      our accuracies of the language model against published ones
publish.py              SAEs in a folder for a model hub
labelled/               texts with labels
judge/                  who explains latents and predicts from it
benchmarks/             one file per benchmark: here one is added
recovery/               an SAE beside the features that are known
latents/                what latents do, for people to look at
compare/                variants against the baseline
report/                 the page and the summary
"""
