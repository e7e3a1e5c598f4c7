"""Every byte that crosses a stage: the activation cache and the SAE artefact.

record.py       frozen records and their digests
record_file.py  records as files that hold their own digest
identity.py     which language model it was; small checked types
errors.py       what can be wrong with our files
machine.py      errors of the machine, which are no damage, and what to do about them
atomic.py       files whole or not at all
replace.py      folders replaced as a whole, across file systems and on mount points
lease.py        one writer per folder, on one machine or many
harvest_log.py  how a cache came about: its runs, their time and speed
process.py      which machine this is, and when a process of it started
codec/          bytes of a chunk: the plane split and the other codecs
cache/          what a cache is: spec, manifest, names and order of its files
files/          where its files are: a folder, a bucket, a server
write/          writing it, shard by shard
read/           reading it: shuffled batches, rows and tokens by number
care/           looking after it: info, verify, repair, transcode, sample
sae/            the SAE: its artefact, and the geometry of its decoder
"""
