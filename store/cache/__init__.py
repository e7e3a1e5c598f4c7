"""What an activation cache is.

spec.py          everything that decides its bytes
manifest.py      the manifest, and the records of shards
moments.py       sums and moments of its rows
norms.py         how long its rows are: counts in bins
norm_limit.py    rows above so many medians, and the moments of the others
norm_summary.py  how unequal its rows are, in a sentence
truth.py         the known features of synthetic rows
text_account.py  what became of the text: read, trained on, held out, unused
paths.py         the names of its files
left_out.py      sequences that gave no finite rows
split.py         which documents are held out
outlier_rows.py  rows that outweigh the others, and whether they decide metrics
order.py         in which order rows lie on disk, and are read in an epoch
zarr_arrays.py   its arrays in zarr's own words
diagnose.py      what a folder without a manifest is
"""
