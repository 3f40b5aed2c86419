"""Ranking of pages without I/O: index terms of texts, dates in questions, and the score.

README.md explains the ranking. This package must not know where pages are stored.
"""
