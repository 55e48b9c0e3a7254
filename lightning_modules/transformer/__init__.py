"""The Transformer, from its parts (Vaswani et al. 2017, arXiv:1706.03762). Imports torch alone. See docs/model.md.

Letters in tensor names say their axes: B rows of the batch, L length of a sequence (S source, T target), D model width
(d_model), H heads, K width of a head, F inner width of the feed-forward, V vocabulary, N real target positions, U
distinct tokens of a batch, C characters of a token.
"""
