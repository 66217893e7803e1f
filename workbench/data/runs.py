"""Checking thousands of compressed run lengths at once, before C code that trusts them reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LONGEST = 7  # characters of one run: 35 bits, more than any image needs
_CHUNK = 1 << 20  # characters worked on at once; about a hundred bytes of memory each


def covered_pixels(counts: Sequence[bytes]) -> np.ndarray:
    """(N,) int64: how many pixels each of N compressed RLEs covers, -1 for a damaged one.

    In COCO's encoding a run is a group of characters from 48 on, each with 5 bits, least first; bit 5 says
    that more follow, bit 4 of the last is the sign. From the third run after the first on, what is written is
    the difference to the run two before.
    """
    if not len(counts):
        return np.zeros(0, dtype=np.int64)
    chunk = np.cumsum([len(text) for text in counts]) // _CHUNK
    cuts = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(counts)]
    return np.concatenate([_covered(counts[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)])


def _covered(counts: Sequence[bytes]) -> np.ndarray:
    covered = np.full(len(counts), -1, dtype=np.int64)
    lengths = np.array([len(text) for text in counts], dtype=np.int64)
    known = np.flatnonzero(lengths)
    if not len(known):
        return covered
    codes = np.frombuffer(b"".join(counts), dtype=np.uint8).astype(np.int64) - 48
    text_of = np.repeat(known, lengths[known])
    sound = np.ones(len(counts), dtype=bool)
    sound[text_of[(codes < 0) | (codes > 63)]] = False
    closes = (codes & 32) == 0
    last = np.cumsum(lengths[known]) - 1
    sound[known[~closes[last]]] = False
    closes[last] = True

    ends = np.flatnonzero(closes)
    starts = np.concatenate([[0], ends[:-1] + 1])
    width = ends - starts + 1
    owner = text_of[starts]
    sound[owner[width > _LONGEST]] = False
    shift = 5 * np.minimum(np.arange(len(codes)) - np.repeat(starts, width), _LONGEST)
    written = np.add.reduceat((codes & 31) << shift, starts)
    written -= np.where(codes[ends] & 16, 1 << 5 * np.minimum(width, _LONGEST), 0)

    # Undo the differences: in a text, runs 1, 3, 5... and 2, 4, 6... are running sums; run 0 is alone.
    first = np.searchsorted(owner, owner)
    place = np.arange(len(owner)) - first
    chain = np.where(place == 0, 0, 2 - place % 2)
    order = np.argsort(3 * owner + chain, kind="stable")
    sums = np.cumsum(written[order])
    key = (3 * owner + chain)[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    before = np.repeat(sums[begins] - written[order][begins], np.diff(np.concatenate([begins, [len(key)]])))
    runs = sums - before
    sound[owner[order][runs < 0]] = False
    totals = np.zeros(len(counts), dtype=np.int64)
    np.add.at(totals, owner[order], runs)
    covered[known] = np.where(sound[known], totals[known], -1)
    return covered
