"""Looking after an activation cache.

counted.py       what long work counts, for whoever shows it
info.py          what it holds, in words and numbers
verify.py        whether its files are as they were written
repair.py        damaged files restored by content, or harvested again
transcode.py     the same rows in another codec
sample.py        a few rows with their tokens, for people
dvc_versions.py  earlier versions of an output, found through DVC
"""
