"""Constraints on answers: GBNF grammars and JSON schemas, compiled and checked.

`gbnf.py` and `lark.py` write grammars in Lark, the language of llguidance; only `compiler.py`
imports llguidance. `document.py` parses a schema and resolves its references, `keywords.py` rejects
unsupported keywords, `shapes.py` defines the values that satisfy a schema, `goals.py` computes
them, `check.py` and `answer.py` check a complete value. No module here depends on a model.
"""
