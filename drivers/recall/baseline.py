"""The baseline that the recall benchmark compares with: vectors only.

    python -m llmasos.drivers.recall.baseline < {"pages": [text], "questions": [text]}

Scores every page by its own vector; no index, no neighbours, no words. Prints one JSON line per
question: the indexes of the pages, the nearest first.
"""

import json
import sys

import numpy as np

from llmasos.kernel.abi import paths

from .encoder import Encoder


def main() -> None:
    texts = json.load(sys.stdin)
    encoder = Encoder(paths.find().cache)
    pages, questions = encoder.encode(texts["pages"]), encoder.encode(texts["questions"])
    for scores in questions @ pages.T:
        print(json.dumps(np.argsort(-scores, kind="stable").tolist()))


if __name__ == "__main__":
    main()
