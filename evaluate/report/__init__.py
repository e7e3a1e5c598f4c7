"""The report: one page, its templates, its data.

page.py            the page and the summary
inputs.py          all that it stands on, checked
metrics.py         the columns of its table
text.py            which sentences it has, and their order
findings.py        the sentences
learned_lambda.py  the sentences on learned lambdas
probing.py         probing results that are no scores
figures.py         which figures it has, with captions
plots.py           the figures
svg.py             SVG scales, axes, lines
templates/         HTML, CSS and Markdown
"""
