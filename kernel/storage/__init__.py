"""Storage: SQLite databases and their writer threads, the journal, identifiers, files of callers.
sqlite3 is imported here only. It must not know what the rows mean.
"""
