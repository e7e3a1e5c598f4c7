"""The files of a cache, wherever it is.

protocol.py       what reading asks of a place
open.py           from a place to its files
listing.py        the files below a folder
local.py          a folder, mapped or read
remote.py         a bucket or server through fsspec: ranges, tries, bounds on time
remote_errors.py  what a driver's error means and what to do about it
range_cache.py    ranges of remote files kept on a local disk within a budget
"""
