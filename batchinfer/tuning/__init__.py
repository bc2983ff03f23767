"""`batchinfer tune`: what runs a model fastest on this machine, measured on rows of the input.

    plan ─take_sample─▶ Sample ─┐
    Candidate ──engine──▶ Bench ┴─measure─▶ Trial ──Search──▶ choice ──▶ Profile

A candidate's answers are compared with float32 before its speed counts.
"""
