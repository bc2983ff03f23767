"""`batchinfer plan`: what a run will be like, from a sample of its rows and a few measured batches.

    plan ─take_material─▶ Material ─┬─measure──▶ Speed ────┐
                                    └─rehearse─▶ Rehearsal ┴─chunk by chunk─▶ Forecast ──▶ the user's cache

Nothing is written but the cache, where the run finds the forecast that it is held against when it is done.
"""
