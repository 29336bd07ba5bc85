"""The oracle: what a Graph computes, in plain torch, one process, one stream.

Nothing here is fast. Each op kind is one short function, written from the kind's definition alone, so that passes and
emitted programs have something independent to agree with. Said and lowered kinds both run; lowered ones mean what they
mean at world size 1, where this rank holds every expert and an all2all gives back what it was given.
"""

from epsc.interpret.run import interpret as interpret
