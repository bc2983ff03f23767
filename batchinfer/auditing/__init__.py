"""audit(): do the answers hold when each row is computed alone, in float32, by transformers itself?

    the shards' footers ─▶ sampling: rows that have an answer, from all over the job
          the input, read again ─▶ recomputation: each row alone, by the plainest engine there is
                                        └─▶ differences: what was written beside that, by type of column

It answers what a fast setting cannot say of itself: whether bfloat16, packing, batching or an exported
model changed the results. Nothing in the run folder is changed, and no lock is taken.
"""

from batchinfer.auditing.recomputation import audit
from batchinfer.auditing.report import Audit, Limits

__all__ = ["Audit", "Limits", "audit"]
