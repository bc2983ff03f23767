"""verify(): prove that every input row stands in the output exactly once.

    plan.json ─▶ each segment's shards, one behind the other ─▶ chain: the footers of them all
                                                             ─▶ rows: those of each, counted and in order
                                                             ─▶ comparison: the input, read again

The chain says that shards follow each other without a gap, the rows of each that it holds what its
place in the chain says, and the input that the chain is the whole of it. Nothing is written, and no
more than one chunk and its shard are in memory.
"""

from batchinfer.verification.chain import verify
from batchinfer.verification.findings import Finding, Verification

__all__ = ["Finding", "Verification", "verify"]
