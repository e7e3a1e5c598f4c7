"""The latent browser: reports/latents.html, and reports/latents/ with the whole of it as small files.

page.py         writes all of it; which latents the page itself holds
view.py         what is known of one variant's latents
records.py      the same as JSON that the page's script reads
neuronpedia.py  the same under Neuronpedia's names
numbers.py      the numbers as CSV and JSON
"""
