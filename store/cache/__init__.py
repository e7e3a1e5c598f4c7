"""What an activation cache is.

spec.py         everything that decides its bytes
manifest.py     the manifest, and the records of shards
moments.py      sums and moments of its rows
paths.py        the names of its files
split.py        training rows and held-out rows
order.py        orders on disk and in epochs: here a batch is shuffled
zarr_arrays.py  its arrays in zarr's own words
diagnose.py     what a folder is that is no cache
"""
