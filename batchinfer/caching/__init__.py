"""Answers kept between runs: `--cache DIR`.

keys.py: what an answer depends on, and what it is called; store.py: entries on disk; answers.py: from a
chunk's requests to entries and back.
"""

from batchinfer.caching.answers import AnswerCache

__all__ = ["AnswerCache"]
