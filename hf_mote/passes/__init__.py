"""What the rows of a forward pass are: which tokens, prompt or generated, thinking or answer, padding, which place.

Serves both `routing` and `sae`, and imports neither. Files in reading order:

- `forward.py`: `Forward`, one pass described; `DecoderParticipant`, which is called for every pass.
- `arguments.py`: the arguments of a decoder's forward, read by what they are.
- `decoder_hook.py`: `DecoderHook`, the hook on the decoder, which makes a `Forward` of the arguments.
- `cached_text.py`: what a cache has read so far, and whether its rows moved, as beams do.
- `assisted.py`: which tokens are guesses of assisted decoding.

May import `hooks`. A new kind of cache, mask or way of decoding is read in `arguments.py`.
"""
