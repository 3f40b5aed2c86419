"""The bare loop of drivers/local on llama.cpp.

    python -m llmasos.drivers.llama.bare --model FILE --sequences 16 --prompt-tokens 88 --new 48

Its flags are the design choices of the engine: `llmasos bench choices` measures them.
"""

import os
import sys
from pathlib import Path

from llmasos.drivers.local import bare, gguf

from . import options
from .context import LlamaContext
from .model import load
from .placement import place

_WAITS = {
    *options.SPIN,
    "OMP_WAIT_POLICY",
}  # variables with which the caller sets how OpenMP threads wait


def main() -> None:
    flags = bare.parser((__doc__ or "").splitlines()[0])
    flags.add_argument("--no-flash", action="store_true", help="disable flash attention")
    flags.add_argument("--unified", action="store_true", help="one KV pool for all sequences")
    arguments = flags.parse_args()
    if not _WAITS & os.environ.keys():
        # OpenMP reads its settings when it is loaded. Both sides use the same ones.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **options.SPIN})
    chosen = bare.options(arguments)
    chosen |= {"flash": False} if arguments.no_flash else {}
    chosen |= {"unified": True} if arguments.unified else {}
    path = Path(arguments.model)
    settings = place(options.settings(path, gguf.read(path), chosen)).settings
    model = load(settings)
    bare.measure(LlamaContext(model, settings), model.vocab, arguments)


if __name__ == "__main__":
    main()
