"""Drifting compared with its alternatives: one network, one set of pairs, equal time of training. See __main__.py."""
