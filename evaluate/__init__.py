"""From trained SAEs to results, and from results to the report.

config.py      its settings, one record per benchmark
benchmarks.py  the benchmarks that run, and those to come
adapter.py     our artefact as a sae-bench SAE
core.py        sae-bench core, the language model with and without the SAE
geometry.py    angles between decoder directions
results.py     the file a benchmark leaves
run.py         the stage: one benchmark over all variants
evidence.py    all that the report stands on, checked
compare.py     variants against the baseline
learned.py     where learned lambdas should end, and did
probing.py     probing results that are no scores
findings.py    the sentences of the report
story.py       their choice and order
pictures.py    which pictures, with captions
figures.py     the pictures
chart.py       SVG scales, axes, lines
report.py      the page and the summary
"""
