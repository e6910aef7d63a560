"""A simulator of faults: the real store of checkpoints, the real launcher and records, a stand-in for
the arithmetic of training, and a disk that crashes, tears, fills up and loses what was not synced.
"""
