"""``--input FILE.jsonl``: lines in, jobs through the engine, lines out; in the supervisor."""
