"""The bare loop of drivers/local on OpenVINO.

python -m llmasos.drivers.openvino.bare --model FILE --sequences 16 --prompt-tokens 88 --new 48
"""

from pathlib import Path

from llmasos.drivers.local import bare, gguf

from . import options
from .context import PagedContext
from .graph import convert
from .model import PagedModel
from .vocabulary import vocabulary


def main() -> None:
    arguments = bare.parser((__doc__ or "").splitlines()[0]).parse_args()
    path = Path(arguments.model)
    settings = options.settings(path, gguf.read(path), bare.options(arguments))
    vocab, _ = vocabulary(path)
    model = PagedModel(convert(path), settings.blocks, settings.threads)
    bare.measure(PagedContext(model, settings, vocab.size), vocab, arguments)


if __name__ == "__main__":
    main()
