"""Meaning alone, as plainly as it can be done: what recall is compared with.

    python -m llmasos.drivers.recall.plain < {"pages": [text], "questions": [text]}

Each page by its own vector, all of them scored; no index, no neighbours, no words. For each
question one JSON line: the pages' indexes, the nearest first.
"""

import json
import sys

import numpy as np

from .encoder import Encoder


def main() -> None:
    asked = json.load(sys.stdin)
    encoder = Encoder()
    pages, questions = encoder.encode(asked["pages"]), encoder.encode(asked["questions"])
    for scores in questions @ pages.T:
        print(json.dumps(np.argsort(-scores, kind="stable").tolist()))


if __name__ == "__main__":
    main()
