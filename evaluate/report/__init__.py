"""The report: one page, its templates, its data.

page.py            the page and the summary
inputs.py          all that it is made from, checked
verdict.py         the sentences that open it: the answer, how sure, what would change it
benchmark_tables.py  all metrics, a table per benchmark
kinds_table.py     fixed, scheduled and learned lambdas against each other
metrics.py         the columns of its table
numbers.py         all numbers, as CSV and JSON
spelling.py        numbers and names as people read them
facts.py           settings and data beside the results
text.py            which other sentences it has, and their order
findings.py        these sentences
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
