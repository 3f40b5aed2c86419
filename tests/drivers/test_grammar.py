"""Grammars mean what they mean in llama.cpp, schemas what they say, and bad ones name the place."""

import ctypes
import json
import random
import time
from typing import Any, cast

import numpy as np
import pytest

from llmasos.drivers.grammar import compiler, gbnf
from llmasos.drivers.llama.library import lib
from llmasos.drivers.local.grammar import Grammars
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Sampling
from tests.drivers.vocabulary import grammars, matcher, matches, model, tokens

LIST = r"""
# a list of names
root ::= item ("," ws item)*
item ::= [A-Z] [a-z-]{1,20} | "\"" [^"\\\n]* "\""   # or a quoted text
ws   ::= [ \t]*
"""


def refused(**fields: str) -> SyscallError:
    with pytest.raises(SyscallError) as error:
        grammars().matcher(Sampling(**fields))  # type: ignore[arg-type]
    assert error.value.errno is Errno.EINVAL
    assert error.value.hint
    return error.value


# --- what GBNF means --------------------------------------------------------------------------
def in_llama_cpp(grammar: str, text: str) -> bool:
    """Whether llama.cpp's own grammar takes a text. It is told only what it allowed."""
    vocab = lib.llama_model_get_vocab(model().handle)
    chain: Any = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    assert chain, grammar
    row = np.zeros(1, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    array = lib.llama_token_data_array()
    pointer = cast("Any", ctypes.POINTER(lib.llama_token_data))
    array.data = row.ctypes.data_as(pointer)
    array.size = 1
    try:
        for token in [*tokens(text), min(model().vocab.ends)]:
            row["id"], row["logit"] = token, 0
            lib.llama_sampler_apply(chain, ctypes.byref(array))
            if row["logit"][0] == -np.inf:
                return False
            if token not in model().vocab.ends:
                lib.llama_sampler_accept(chain, token)
    finally:
        lib.llama_sampler_free(chain)
    return True


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        ('root ::= [a-z]+ "x"', ["abx", "ab", "x", "xx"]),
        ('root ::= ("ab" | "abc") "cd"', ["abcd", "abccd", "abc"]),
        ('root ::= "ab"+', ["abab", "abb", ""]),
        ('root ::= ("a"*){2,3} "b"', ["aab", "b", "a"]),
        ('root ::= ("a"?)+ "b"', ["aab", "b"]),
        ("root ::= [-+*/]+", ["-+*/", "a"]),
        (r'root ::= [^"\\\n]+', ["füü 🦊", 'a"b', "a\nb", "]"]),
        ("root ::= .+", ["a\nb 🦊"]),
        (r'root ::= "\u00e9\x41\U0001F98A\t\[\]\\\""', ['éA🦊\t[]\\"']),
        ("root ::= [[]", ["["]),
        ('root ::= a "b" | a "c"\na ::= "x" | ""', ["c", "xb", "x"]),
        ('root::=foo-bar\n\n\nfoo-bar::="x"{2,}', ["xxx", "x"]),
        ('root ::= (\n "a" |\n "b"\n)\n# the end', ["b", "ab"]),
        ('root ::= "a" | # or\n "b"', ["b"]),
        ('start ::= "a"\nroot ::= start start', ["aa", "a"]),
        ('root ::= ""', ["", "a"]),
        ('root ::= "<|im_end|>"', ["<|im_end|>"]),
        (LIST, ["Anna, Bob,Ka-rl", '"x y", Anna', "Anna,", "anna"]),
    ],
)
def test_a_grammar_means_what_it_means_in_llama_cpp(grammar: str, texts: list[str]) -> None:
    ours = [matches(matcher(grammar=grammar), text) for text in texts]
    assert ours == [in_llama_cpp(grammar, text) for text in texts]
    assert any(ours)


def a_rule(dice: random.Random, names: list[str], depth: int = 2) -> str:
    def item() -> str:
        kinds = ['"a"', '"ab"', "[a-b]", "[^a]", '"b"', *names]
        if depth:
            kinds.append(f"({a_rule(dice, names, depth - 1)})")
        return dice.choice(kinds) + dice.choice(["", "", "", "?", "*", "+", "{2}", "{1,2}"])

    ways = [" ".join(item() for _ in range(dice.randint(1, 3))) for _ in range(dice.randint(1, 2))]
    return " | ".join(ways)


def test_random_grammars_mean_what_they_mean_in_llama_cpp() -> None:
    dice = random.Random(7)
    taken = simple = 0
    while simple < 120:
        last = dice.choice(['[ab] x? "c"?', a_rule(dice, []), a_rule(dice, [])])
        grammar = f"root ::= {a_rule(dice, ['x'])}\nx ::= {last}\n"
        try:
            matcher(grammar=grammar)
        except SyscallError as error:
            assert "Too many items" in error.message
            continue
        simple += 1
        for text in ("".join(dice.choices("abc", k=size)) for size in (0, 1, 2, 3, 4, 6)):
            ours = matches(matcher(grammar=grammar), text)
            assert ours == in_llama_cpp(grammar, text), (grammar, text)
            taken += ours
    assert taken > 50


def test_many_grammars_of_a_domain_evict_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Grammars(model().vocab)
    rare = Sampling(grammar='root ::= "rare"')
    found.matcher(rare, "ann")
    for number in range(limits.GRAMMARS + 3):
        found.matcher(Sampling(grammar=f'root ::= "{number}"'), "bob")
    compiled = list[str]()

    def compile_again(kind: str, text: str, tokenizer: compiler.LLTokenizer) -> compiler.LLMatcher:
        compiled.append(text)
        return original(kind, text, tokenizer)

    original = compiler.compiled
    monkeypatch.setattr(compiler, "compiled", compile_again)
    found.matcher(rare, "ann")
    found.matcher(Sampling(grammar=f'root ::= "{limits.GRAMMARS + 2}"'), "bob")
    assert compiled == []
    found.matcher(Sampling(grammar='root ::= "0"'), "bob")
    assert len(compiled) == 1


def test_left_recursion_works() -> None:
    """llama.cpp refuses it."""
    grammar = 'root ::= root "+" [0-9] | [0-9]'
    assert matches(matcher(grammar=grammar), "1+2+3")
    assert not matches(matcher(grammar=grammar), "1+")


def test_an_end_may_come_exactly_when_the_grammar_is_satisfied() -> None:
    found = matcher(grammar='root ::= "a" "b"?')
    vocab = model().vocab
    [a], [b] = tokens("a"), tokens("b")
    assert not any(map(found.allows, vocab.ends))
    found.take(a)
    assert all(map(found.allows, vocab.ends))
    assert set(np.flatnonzero(found.mask())) == {b, *vocab.ends}
    assert not found.finished
    found.take(b)
    assert found.may_end
    assert found.finished
    assert not found.allows(a)


def test_a_mask_and_single_tokens_agree() -> None:
    found = matcher(grammar='root ::= ("ab" | [c-f]+) "!"')
    found.take(tokens("c")[0])
    mask = found.mask()
    dice = random.Random(3)
    some = {*dice.sample(range(model().vocab.size), 2000), *np.flatnonzero(mask).tolist()}
    assert {token for token in some if found.allows(token)} == set(np.flatnonzero(mask))


def test_a_control_token_is_never_a_text() -> None:
    [mark] = model().vocab.tokenize("<|im_start|>", special=True).tolist()
    found = matcher(grammar="root ::= .*")
    assert not found.allows(mark)
    assert not found.mask()[mark]


def test_a_token_that_is_forbidden_or_none_is_a_fault() -> None:
    for token in (tokens("b")[0], -1, model().vocab.size, 2**40):
        found = matcher(grammar='root ::= "a"')
        assert not found.allows(token)
        with pytest.raises(DeviceFault):
            found.take(token)


def test_answers_do_not_share_where_they_stand() -> None:
    one, two = matcher(grammar='root ::= "ab"'), matcher(grammar='root ::= "ab"')
    one.take(tokens("a")[0])
    assert two.allows(tokens("a")[0])
    assert not one.allows(tokens("a")[0])


def test_only_the_last_grammars_are_kept() -> None:
    few = Grammars(model().vocab)
    for number in range(limits.GRAMMARS + 5):
        few.matcher(Sampling(grammar=f'root ::= "{number}"'))
    assert len(few._cache) == limits.GRAMMARS  # pyright: ignore[reportPrivateUsage]
    assert few.matcher(Sampling(grammar='root ::= "0"'))


# --- bad grammars -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("grammar", "place", "words"),
    [
        ("root ::= foo", "line 1, column 10", "'foo' is not defined"),
        ('root ::= "a"\n  | "b"', "line 2, column 3", "a rule's name is expected"),
        ('root ::= x\nx ::= "b', "line 2, column 7", "has no end"),
        ("root ::= [a", "line 1, column 10", "no ]"),
        ('root ::= ("a"', "line 1, column 14", "no ) for the ( at line 1, column 10"),
        ('root ::= "a" )', "line 1, column 14", "unexpected ')'"),
        ('root = "a"', "line 1, column 6", "::= is expected"),
        ('root ::= "\\q"', "line 1, column 11", "\\q is not a valid escape"),
        ('root ::= "\\x4"', "line 1, column 11", "\\x is not a valid escape"),
        ('root ::= "\\', "line 1, column 11", "is not a valid escape"),
        ('root ::= "\\ud800"', "line 1, column 11", "\\ud800 is not a valid character"),
        ("root ::= [z-a]", "line 1, column 11", "ends before it begins"),
        ("root ::= []", "line 1, column 10", "empty character set"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1", "defined twice, first in line 1"),
        ("root ::= <[12]>", "line 1, column 10", "token references are not supported"),
        ('root ::= "a"{5,2}', "line 1, column 13", "its minimum after its maximum"),
        ('root ::= "a"{x}', "line 1, column 13", "{N}, {N,} or {N,M} is expected"),
        ('root ::= "a"{9999999}', "line 1, column 13", "is more than 100000 times"),
        ("root ::= " + "(" * 200, "line 1, column 110", "more than 100 nested groups"),
        ('root ::= "a" root', "line 1, column 1", "'root' can never end"),
        ("root ::= root", "line 1, column 1", "'root' can never end"),
        ('root ::= "a" b | "b"\nb ::= ("x" | "y") b', "line 2, column 1", "'b' can never end"),
        ("%", "line 1, column 1", "a rule's name is expected"),
    ],
)
def test_a_grammar_that_is_none_is_refused_with_its_place(
    grammar: str, place: str, words: str
) -> None:
    message = refused(grammar=grammar).message
    assert place in message
    assert words in message


@pytest.mark.parametrize("grammar", ['x ::= "a"', "", "   # nothing\n"])
def test_a_grammar_without_a_root_is_refused(grammar: str) -> None:
    assert "no rule 'root'" in refused(grammar=grammar or " ").message


def test_a_grammar_and_a_schema_are_one_too_many() -> None:
    assert "a grammar and a schema" in refused(grammar='root ::= "a"', schema="{}").message


def chain(rules: int) -> str:
    lines = [f'{n}::={n + 1}|"b"' for n in range(rules)]
    return f'root ::= 0\n{chr(10).join(lines)}\n{rules} ::= "c"'


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= ("a"{1000}){1000}',
        'root ::= ((("a"{1000}){1000}){1000}){1000}',
        "root ::= " + "(" * 100 + '"a"' + ")" * 100,
        'root ::= "' + "a" * (limits.GRAMMAR_CHARS - 20) + '"',
        "root ::= " + " | ".join(f'"{n}"' for n in range(6000)),
        "root ::= [" + "".join(chr(0x4E00 + 2 * n) for n in range(8000)) + "]*",
        chain(4200),  # the library follows it by recursion, over the end of a usual stack
    ],
    ids=["repeats", "more-repeats", "groups", "long", "wide", "set", "chain"],
)
def test_a_huge_grammar_is_compiled_or_refused_in_time(grammar: str) -> None:
    assert len(grammar) <= limits.GRAMMAR_CHARS
    begin = time.process_time()
    try:
        found = matcher(grammar=grammar)
        assert found.mask().any()
    except SyscallError as error:
        assert error.errno is Errno.EINVAL
    assert time.process_time() - begin < limits.GRAMMAR_S


def test_reading_is_linear() -> None:
    """Nothing in the reader goes over a text again and again."""
    text = "root ::= " + "x " * 30_000 + '\nx ::= "a"'
    begin = time.process_time()
    gbnf.to_lark(text)
    assert time.process_time() - begin < limits.GRAMMAR_S


# --- schemas ----------------------------------------------------------------------------------
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}


def valid(schema: object, text: str) -> bool:
    return matches(matcher(schema=json.dumps(schema)), text)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (PERSON, '{"name": "Ann", "age": 3}', '{"name": "Ann"}'),
        (PERSON, '{\n  "name": "Ann",\n  "age": 3\n}', '{"name": "Ann", "age": -1}'),
        (TREE, '{"value": 1, "next": {"value": 2, "next": null}}', '{"value": 1}'),
        ({"enum": ["red", "green", 3]}, '"red"', '"blue"'),
        ({"type": "array", "items": {"type": "number"}, "maxItems": 2}, "[1, -2.5e3]", "[1,2,3]"),
        ({"type": "string", "pattern": "^[0-9]{3}$"}, '"123"', '"12"'),
        ({"type": "string", "frobnicate": 3}, '"x"', "3"),  # unknown words are ignored, as they say
        ({}, '[null, {"a": true}]', "]"),
        (True, "null", "nul"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": ["object", "null"]}}}, "null", "1"),
    ],
)
def test_a_schema_takes_what_it_describes(schema: object, good: str, bad: str) -> None:
    assert valid(schema, good)
    assert not valid(schema, bad)


def test_spaces_in_json_are_bounded() -> None:
    """A small model would go on with them for ever."""
    assert valid(PERSON, '{"name":"Ann","age":3}')
    assert not valid(PERSON, '{"name":' + " " * 40 + '"Ann","age":3}')
    assert not valid(PERSON, "{\n\n\n" + '"name":"Ann","age":3}')


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"type": }', "is not JSON: Expecting value: line 1 column 10"),
        ('{"type": "string"', "is not JSON: Expecting ',' delimiter: line 1 column 18"),
        ("3", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("false", "is not a JSON object"),
        ("9" * 5000, "is not JSON"),
        ('{"type": "strin"}', "refused at /: type is 'strin', not one of null"),
        ('{"properties": {"a/b": {"items": {"type": "foo"}}}}',
         "refused at /properties/a~1b/items: type is 'foo'"),
        ('{"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "pattern": "(("}}}',
         "refused at /$defs/a: not a regular expression: unclosed group"),
        ('{"type": "string", "minLength": "x"}', "refused at /"),
        ('{"$ref": "#/$defs/nowhere"}', "'#/$defs/nowhere' does not exist"),
        ('{"$ref": "http://example.com/x"}', "http://example.com/x"),
        ('{"enum": []}', "can never be satisfied: at /, no value of enum"),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "at /, minimum 5 is over maximum 3"),
        ('{"$ref": "#"}', "can never be satisfied"),
        ('{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
         "can never be satisfied"),
        ('{"type": "array", "items": {"$ref": "#"}, "minItems": 1}', "can never be satisfied"),
        ('{"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}}',
         "can never be satisfied"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "is nested too deeply"),
        ("[" * 60_000, "is nested too deeply"),
        ('{"enum": ["\\ud800"]}', "refused at /"),
        ('{"minimum": 1e999}', "refused at /"),
    ],
)  # fmt: skip
def test_a_schema_that_is_none_is_refused_with_its_place(schema: str, words: str) -> None:
    message = refused(schema=schema).message
    assert message.startswith("the schema ")
    assert words in message


def references(count: int) -> str:
    links = {f"a{n}": {"properties": {"p": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(count)}
    links[f"a{count}"] = {}
    return json.dumps({"$ref": "#/$defs/a0", "$defs": links}, separators=(",", ":"))


@pytest.mark.parametrize(
    "schema",
    [
        json.dumps(nested(25)),
        json.dumps({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
        json.dumps({"type": "string", "pattern": "(a|b)*a(a|b){30}"}),
        json.dumps({"type": "array", "items": {"type": "string"}, "minItems": 10**6}),
        json.dumps({"enum": [f"value {n * 7919}" for n in range(3000)]}),
        json.dumps({"type": "object", "properties": {f"p{n}": {} for n in range(5000)}}),
        json.dumps({"allOf": [{"properties": {f"p{n}": {"minimum": n}}} for n in range(1000)]}),
        json.dumps(
            {"allOf": [{"anyOf": [{"minimum": n * m} for n in range(8)]} for m in range(9)]}
        ),
        json.dumps({"properties": {f"p{n}": {"type": "foo"} for n in range(2000)}}),
        references(1000),
    ],
    ids=["nested", "pattern", "states", "items", "enum", "wide", "all", "any", "wrong", "chain"],
)
def test_a_huge_schema_is_compiled_or_refused_in_time(schema: str) -> None:
    assert len(schema) <= limits.GRAMMAR_CHARS
    begin = time.process_time()
    try:
        assert matcher(schema=schema).mask().any()
    except SyscallError as error:
        assert error.errno is Errno.EINVAL
    assert time.process_time() - begin < limits.GRAMMAR_S
