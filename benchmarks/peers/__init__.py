"""batchinfer beside others on a CPU: the same texts and models, file to file, in one interleaved run.

    python -m benchmarks.peers --corpus gsm8k/test.jsonl self-instruct/*.jsonl --out NAME.json

    material      texts and models on disk, the same files for everyone
    entries       who takes part, and the settings that each may choose from
    contestants   what each does: read JSONL, answer, write Parquet
    child         one contestant in a process of its own: load once, then answer files
    search        the quickest setting of those who have a choice
    contest       the processes in turn (A B C, A B C, …), their answers checked, their times kept
    figures       medians, ratios, shares of the ceiling: arithmetic alone

What makes it fair: texts, token limit (512) and models are the same files, and everyone must report the
same number of tokens. Others get their best setting from a search on the machine itself. Loading is
timed apart. Each has a fresh process in every round, alone on the machine: nobody's allocator, threads
or imports touch another, and nobody has met the shapes of its batches before. Answers are held against
plain transformers in float32, one row at a time, before and in every round; who answers wrong has no
time. Those too slow for all rows take the first ones; the rows are shuffled, so tokens a second can be
compared.
"""
