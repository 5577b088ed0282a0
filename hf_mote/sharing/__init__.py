"""What happens to a thing between its file and other people.

Files in reading order:

- `privacy.py`: what of the author must not be in it.
- `cards.py`: the card: the Hub's metadata, sections, pictures.
- `transfer.py`: down from the Hub and up to it, checked; every error one of this package.
- `shipped.py`: the configs that come with the package, by name.

`hub.py` uses all of them for what lives in one file, `sae/sharing.py` for SAEs. May import `files` and `plots`. What a
new kind of thing says on a card stands in its own class, as `_card` and `_evidence`.
"""
