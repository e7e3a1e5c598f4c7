"""From trained SAEs to benchmark results, and from results to the report.

config.py        its settings, one record per benchmark
run.py           the stage: one benchmark over all variants
reuse.py         results that need no measuring
set_up.py        the language model and text that benchmarks share
dependencies.py  what a result depends on: cards, held-out tokens
results.py       the file a benchmark leaves
sae_bench.py     our artefact as a sae-bench SAE
publish.py       SAEs in a folder for a model hub
benchmarks/      one file per benchmark: here one is added
compare/         variants against the baseline
report/          the page and the summary
"""
