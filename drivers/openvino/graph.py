# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
"""A GGUF file as an OpenVINO graph with paged attention. Imported in child processes only.

The frontend in the `openvino` wheel converts a file into a graph for one sequence, whose attention
reads a contiguous cache. Here each attention becomes PagedAttentionExtension, which reads the keys
and values of many sequences from blocks. The rotary embedding of `llama` files turns neighbouring
rows (2i, 2i+1), a pattern that OpenVINO does not fuse; the rows of the query and key weights are
reordered once so that rows i and i + size/2 are turned, which prompts compute 30 % faster. The
order of the rows changes no attention score, because queries and keys have the same order.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import Errno, SyscallError

from .library import FrontEndManager, PagedAttention, ops, ov, reason
from .weights import MappedWeights

log = logging.getLogger(__name__)

Node = Any  # openvino.Node
_INPUTS = ("inp_tokens", "inp_pos", "inp_out_ids")  # inputs of the converted graph that stay
_REPLACED = ("cache_", "inp_", "self_kq_mask", "token_len")  # prefixes of all inputs it may have
_I32, _F32 = ov.Type.i32, ov.Type.f32
_END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PagedGraph:
    """A graph for many sequences."""

    model: Any  # openvino.Model
    weights: MappedWeights | None  # None: they are in memory
    layers: int

    def release(self) -> None:
        """Give back the memory of the weights, after the graph has computed a step."""
        if self.weights is not None:
            self.weights.release()

    def before_logits(self) -> "PagedGraph":
        """The same graph with the input of its last matrix product as output."""
        [result] = self.model.get_results()
        node = _source(result)
        while node.get_type_name() != "MatMul":
            node = _source(node)
        hidden = ops.result(node.input_value(0))
        model = ov.Model([hidden], self.model.get_parameters(), "hidden")
        return PagedGraph(model, self.weights, self.layers)

    @property
    def vocab_size(self) -> int:
        """Numbers in a row of logits."""
        size: int = self.model.output(0).get_partial_shape()[-1].get_length()
        return size


def convert(path: Path) -> PagedGraph:
    """The paged graph of a file. ENOTSUP with the reason when it cannot be converted."""
    try:
        source = _converted(path)
    except Exception as error:  # the frontend's exceptions have no common class
        raise _unsupported(f"its frontend cannot convert {path.name}: {reason(error)}") from error
    _check_inputs(source)
    paged = _Paged(source)
    model = paged.build()
    return PagedGraph(model, _mapped(model), paged.layers)


def _mapped(model: Any) -> MappedWeights | None:
    """The weights of a graph in a file; None: there is no room for one."""
    try:
        return MappedWeights(model, paths.find().cache)
    except (OSError, SyscallError) as error:
        log.warning("the weights stay in memory: %s", error)
        return None


def _converted(path: Path) -> Any:
    frontend = FrontEndManager().load_by_framework("gguf")
    return frontend.convert(frontend.load(str(path)))


def _check_inputs(source: Any) -> None:
    """ENOTSUP when the graph needs an input that is not known here."""
    names = sorted(one.get_friendly_name() for one in source.get_parameters())
    unknown = [name for name in names if not name.startswith(_REPLACED) or "swa" in name]
    missing = [name for name in _INPUTS if name not in names]
    if unknown or missing:
        found = f"unknown inputs {unknown}, missing inputs {missing}"
        raise _unsupported(f"the graph is not a plain decoder: {found}")


def _unsupported(why: str) -> SyscallError:
    return SyscallError(Errno.ENOTSUP, f"OpenVINO: {why}", "mount it with `--engine llama`")


class _Paged:
    """Builds the paged graph from a converted one."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._nodes = list(source.get_ordered_ops())
        names = {node.get_friendly_name(): node for node in self._nodes}
        self._rotary = _Rotary(names["rope_cos"], names["rope_sin"]) if _has_rotary(names) else None
        lists = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
        self._step = {name: _parameter(name, [-1], _I32) for name in lists}
        self._step["max_context_len"] = _parameter("max_context_len", [], _I32)
        self._caches: list[Node] = []
        self.layers = 0

    def build(self) -> Any:
        """The graph: logits of the rows in `inp_out_ids`, from one step's tokens of many
        sequences."""
        for node in self._nodes:
            if node.get_type_name() == "ScaledDotProductAttention":
                self._replace(node)
                self.layers += 1
            elif node.get_type_name() == "Gather":
                _gather_rows(node)
        if not self.layers:
            raise _unsupported("the graph has no attention")
        logits, *others = self._source.get_results()
        for result in others:
            self._source.remove_result(result)
        inputs = {one.get_friendly_name(): one for one in self._source.get_parameters()}
        kept = [inputs[name] for name in _INPUTS]
        return ov.Model([logits], [*kept, *self._step.values(), *self._caches], "paged")

    def _replace(self, attention: Node) -> None:
        """Replace an attention of one sequence, whose inputs are [1, tokens, heads, size]."""
        query = _behind_convert(_source(_source(attention, 0)))  # behind a Transpose
        key, value = (_written(attention, index) for index in (1, 2))
        heads, size = _heads(query)
        turned = self._rotary.turn(query, key) if self._rotary is not None else None
        new_query, new_key = turned or (query, key)
        paged = PagedAttention([
            one.output(0) for one in self._arguments(
                _flat(new_query, heads * size), _flat(new_key, _width(key)),
                _flat(value, _width(value)), _scale(attention, size),
            )
        ])  # fmt: skip
        for name, number in zip(
            ("num_k_heads", "k_head_size", "num_v_heads", "v_head_size"),
            (*_heads(key), *_heads(value)), strict=True,
        ):  # fmt: skip
            paged.get_rt_info()[name] = number
        result = ops.reshape(paged.output(0), _constant([1, -1, heads, size]), False)
        result = ops.transpose(result, _constant([0, 2, 1, 3]))
        if attention.get_output_element_type(0) != _F32:
            kind = attention.get_output_element_type(0).get_type_name()
            result = ops.convert(result, kind)
        for target in list(attention.output(0).get_target_inputs()):
            target.replace_source_output(result.output(0))

    def _arguments(self, query: Node, key: Node, value: Node, scale: Node) -> list[Node]:
        """The inputs of PagedAttentionExtension, in its order."""
        for kind in ("key", "value"):
            name = f"{kind}_cache.{self.layers}"
            self._caches.append(_parameter(name, [-1] * 4, ov.Type.dynamic))
        step = self._step
        return [
            query, key, value, *self._caches[-2:], step["past_lens"], step["subsequence_begins"],
            step["block_indices"], step["block_indices_begins"], scale,
            _number(0),  # no sliding window
            _empty(np.float32),  # no ALiBi slopes
            step["max_context_len"],
            # What follows is unused: scores, rotated blocks, eviction, sinks, adaptive attention.
            _empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.float32),
            _empty(np.float32), _number(0), _number(0),
            ops.constant(np.zeros((0, 0, 0, 0), np.float32), _F32),
            _number(0), _empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.int32),
            _empty(np.uint8), _empty(np.int32),
        ]  # fmt: skip


def _gather_rows(gather: Node) -> None:
    """Let the embeddings of tokens be computed from the rows that are read.

    Otherwise OpenVINO computes the whole table of numbers that it is stored in, once, and keeps it.
    """
    table = _behind_convert(_source(gather))
    product = _source(table) if table.get_type_name() == "Reshape" else table
    if product.get_type_name() != "Multiply" or len(_shape(table)) != 2:
        return
    values, scales = _behind_convert(_source(product)), _source(product, 1)
    if {values.get_type_name(), scales.get_type_name()} != {"Constant"}:
        return
    places, axis = gather.input_value(1), _number(0)
    rows = ops.convert(ops.gather(values, places, axis), "f32")
    factors = ops.convert(ops.gather(scales, places, axis), "f32")
    result = ops.reshape(ops.multiply(rows, factors), _constant([1, -1, _shape(table)[1]]), False)
    for target in list(gather.output(0).get_target_inputs()):
        target.replace_source_output(result.output(0))


class _Rotary:
    """Turns queries and keys with rows i and i + size/2 as pairs."""

    def __init__(self, cos: Node, sin: Node) -> None:
        self._angles = cos.get_output_partial_shape(0)[3].get_length()  # size/2
        self._cos, self._sin = (_doubled(node, 2 * self._angles) for node in (cos, sin))

    def turn(self, query: Node, key: Node) -> tuple[Node, Node] | None:
        """The query and the key, turned; None: they have another form, and nothing changed."""
        pairs = [_projection(node, 2 * self._angles) for node in (query, key)]
        found = [pair for pair in pairs if pair is not None]
        if len(found) < len(pairs):
            return None
        return self._turned(*found[0]), self._turned(*found[1])

    def _turned(self, projection: Node, weights: "list[_Weight]") -> Node:
        """x * cos + rotated(x) * sin: rotated has the halves swapped and the first one negated."""
        for weight in weights:
            weight.reorder()
        size, half = 2 * self._angles, self._angles
        heads = weights[0].rows // size
        x = ops.reshape(projection, _constant([-1, heads, 1, size]), False)
        axis, step = _constant([3]), _constant([1])
        first = ops.slice(x, _constant([0]), _constant([half]), step, axis)
        second = ops.slice(x, _constant([half]), _constant([_END]), step, axis)
        minus = ops.constant(np.full((1, 1, 1, 1), -1, np.float32))
        rotated = ops.concat([ops.multiply(second, minus), first], -1)
        return ops.add(ops.multiply(x, self._cos), ops.multiply(rotated, self._sin))


@dataclass(frozen=True, slots=True)
class _Weight:
    """A constant of a weight: values, scales or zero points, one row per output."""

    input: Any  # of the node that uses it
    rows: int
    size: int  # of a head

    def reorder(self) -> None:
        """Move rows 2i and 2i+1 of each head to i and i + size/2."""
        constant = self.input.get_source_output().get_node()
        shape, kind = list(constant.get_output_shape(0)), constant.get_output_element_type(0)
        order = np.arange(self.rows).reshape(-1, self.size // 2, 2).transpose(0, 2, 1).reshape(-1)
        rows: NDArray[np.uint8] = _bytes(constant.get_data()).reshape(self.rows, -1)
        tensor = ov.Tensor(kind, ov.Shape(shape))
        tensor.data.view(np.uint8).reshape(self.rows, -1)[:] = rows[order]
        self.input.replace_source_output(ops.constant(tensor).output(0))


def _bytes(data: Any) -> Any:
    return np.ascontiguousarray(data).view(np.uint8)


def _has_rotary(names: dict[str, Node]) -> bool:
    return "rope_cos" in names and "rope_sin" in names


def _projection(turned: Node, size: int) -> tuple[Node, list[_Weight]] | None:
    """The product of weights that a turned query or key comes from, and its weights.

    None when it is not (x * cos) + ... of a product that is used here only.
    """
    product = _source(turned)
    if product.get_type_name() != "Multiply":
        return None
    shaped = _source(product)
    if shaped.get_type_name() != "Reshape" or _source(shaped).get_type_name() != "MatMul":
        return None
    heads, own = _heads(shaped)
    projection = _source(shaped)
    if own != size or len(projection.output(0).get_target_inputs()) != 1:
        return None
    weights = list(_weights(_source(projection, 1), heads * size, size))
    return (projection, weights) if weights else None


def _weights(node: Node, rows: int, size: int) -> Iterator[_Weight]:
    """The constants with so many rows that a weight is computed from."""
    for one in node.inputs():
        source = one.get_source_output().get_node()
        if source.get_type_name() != "Constant":
            yield from _weights(source, rows, size)
            continue
        shape = list(source.get_output_shape(0))
        if len(shape) >= 2 and shape[0] == rows:
            yield _Weight(one, rows, size)


# --- parts of graphs ----------------------------------------------------------------------------
def _source(node: Node, index: int = 0) -> Node:
    return node.input_value(index).get_node()


def _behind_convert(node: Node) -> Node:
    return _source(node) if node.get_type_name() == "Convert" else node


def _written(attention: Node, index: int) -> Node:
    """The new keys or values, before they are written to the contiguous cache."""
    node = _source(attention, index)
    while node.get_type_name() != "ScatterUpdate":
        node = _source(node)
    return _behind_convert(_source(_source(node, 2)))


def _heads(node: Node) -> tuple[int, int]:
    """Heads, and the size of one."""
    heads, size = list(node.get_output_partial_shape(0))[2:]
    return heads.get_length(), size.get_length()


def _shape(node: Node) -> list[int]:
    """The static shape of a node; empty when it has none."""
    shape = node.get_output_partial_shape(0)
    return list(shape.to_shape()) if shape.is_static else []


def _width(node: Node) -> int:
    heads, size = _heads(node)
    return heads * size


def _flat(node: Node, width: int) -> Node:
    return ops.reshape(node, _constant([-1, width]), False)


def _scale(attention: Node, size: int) -> Node:
    value = np.float32(size**-0.5)
    if attention.get_input_size() > 4:
        value = _source(attention, 4).get_data().reshape(()).astype(np.float32)
    return ops.constant(value, _F32)


def _doubled(angles: Node, size: int) -> Node:
    return ops.reshape(ops.concat([angles, angles], -1), _constant([-1, 1, 1, size]), False)


def _parameter(name: str, shape: list[int], kind: Any) -> Node:
    parameter = ops.parameter(shape, kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _constant(values: list[int]) -> Node:
    return ops.constant(np.array(values, np.int64), ov.Type.i64)


def _number(value: int) -> Node:
    return ops.constant(np.array(value, np.int32), _I32)


def _empty(kind: type[np.generic]) -> Node:
    return ops.constant(np.zeros(0, kind))
