"""What is done to an object's files before they are shared, and after they are downloaded.

Files in reading order:

- `privacy.py`: private data of the author, kept out of files.
- `cards.py`: the card: the Hub's metadata, sections, pictures.
- `transfer.py`: checked downloads from the Hub and uploads to it, with errors of this package.
- `shipped.py`: the configs that come with the package, by name.

`hub.py` uses all of them for what lives in one file, `sae/sharing.py` for SAEs. May import `files` and `plots`. The
card of a new kind of object is written in its own class, in `_card` and `_evidence`.
"""
