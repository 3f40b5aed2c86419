"""What an answer has to be: GBNF grammars and JSON schemas, compiled and checked.

`gbnf.py` and `lark.py` write Lark, the language of llguidance, which only `compiler.py` knows.
`document.py` reads a schema and resolves its references, `keywords.py` refuses what is not
supported, `shapes.py` says what values satisfy it, `check.py` and `answer.py` check a value
that is complete. Nothing here knows a model.
"""
