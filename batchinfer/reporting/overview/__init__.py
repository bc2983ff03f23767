"""`batchinfer report`: a run folder at a glance, as one page or as JSON.

    run folder ─gather─▶ Facts ─charts─▶ SVG ─page─▶ HTML
                           └─▶ JSON

`facts.py` holds values alone; `history.py` reads the runs' events files, `sample.py` columns of some
shards, `ceiling.py` measures this machine, where that is asked for.
"""
