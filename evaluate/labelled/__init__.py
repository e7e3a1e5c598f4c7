"""Texts with labels: what probing benchmarks classify.

config.py            which data sets, one record per source
texts.py             a data set as texts by class, for training and for testing
standard_library.py  data sets made from the sources that every Python carries
files.py             a person's own texts and labels
hub.py               sae-bench's data sets, from the hub
set_up.py            one set-up per data set and hook
two_labels.py        texts with two labels, one of which misleads
substitute.py        gives them to sae-bench's code
"""
