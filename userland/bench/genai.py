# pyright: reportMissingImports=false
"""openvino-genai's continuous batching pipeline in a child process, to compare with.

    python -m llmasos.userland.bench.genai FILE THREADS

Only the file and the number of threads are set; prefix caching, precision and the size of the cache
are its defaults. The settings are printed as one JSON line. Then each line of its standard input is
a JSON object: `prompts`, lists of token ids that are generated at once, and `new`, tokens for each.
The answer is a JSON line with the number of tokens and the seconds. It ends when its standard input
closes, so it cannot outlive its parent.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

# Without this, the import sends a usage event and writes to the home directory.
sys.modules["openvino_telemetry"] = cast("Any", None)

import openvino as _openvino  # noqa: E402
import openvino_genai as _untyped  # noqa: E402

openvino, genai = cast("Any", _openvino), cast("Any", _untyped)
REPORTED = (
    "max_num_batched_tokens", "max_num_seqs", "dynamic_split_fuse", "enable_prefix_caching",
    "cache_size", "num_kv_blocks",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    path, threads = arguments
    scheduler = genai.SchedulerConfig()
    properties = {"INFERENCE_NUM_THREADS": int(threads)}
    pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
    settings = {name: getattr(scheduler, name) for name in REPORTED}
    version = genai.get_version()
    print(json.dumps({"threads": int(threads), **settings, "version": version}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answered(pipeline, json.loads(line))), flush=True)
    return 0


def answered(pipeline: Any, request: dict[str, Any]) -> dict[str, float]:
    """Generate all at once, greedily, without regard to the end of an answer."""
    prompts = [openvino.Tensor([tokens]) for tokens in request["prompts"]]
    configs = [_greedy(request["new"]) for _ in prompts]
    begun = time.perf_counter()
    results = pipeline.generate(prompts, configs)
    took = time.perf_counter() - begun
    return {"tokens": sum(len(one.m_generation_ids[0]) for one in results), "wall_s": took}


def _greedy(new: int) -> Any:
    config = genai.GenerationConfig()
    config.do_sample = False
    config.ignore_eos = True
    config.max_new_tokens = new
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
