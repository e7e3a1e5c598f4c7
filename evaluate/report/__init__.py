"""The report: one page, its templates, its data.

page.py            the page and the summary
inputs.py          all that it is made from, checked
benchmark_tables.py  all metrics, a table per benchmark
metrics.py         the columns of its table
text.py            which sentences it has, and their order
findings.py        the sentences
outliers.py        the sentence on rows that outweigh all others
learned_lambda.py  the sentences on learned lambdas
recovery.py        known features found again, world by world
references.py      published results as rows
probing.py         probing results that are no scores
latents/           the latent browser
figures.py         which figures it has, with captions
plots.py           draws one figure
svg.py             scales, axes, lines and text of a drawing
templates/         HTML, CSS and Markdown
"""
