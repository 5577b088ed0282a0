"""From a model and a text to a trained SAE.

In reading order: `sequences` (texts to tokens), `activations` (a stream of activations), `start` (where SAEs start),
`group` (several at once), `trainer` (the Trainer).
"""
