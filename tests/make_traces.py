"""Write batches of real-shaped LLM traces, in the format and with the calls of their producer.

One trace: a dict of ``hidden_states`` (layers x float16 [tokens, hidden]), ``attentions`` (layers x
float16 [heads, tokens, tokens], rows sum to 1, zero above the diagonal), ``tokens`` (int64),
``tokens_decoded``, ``generated_answer_clean``, ``question_id``.  With 32 layers, hidden 4096,
32 heads and 50 tokens a trace takes about 17 MB pickled.
"""

from __future__ import annotations

import argparse
import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

WORDS = ["la", "de", "capital", "es", "río", "1492", "quién", "Lisboa", "año", "?", "ñandú", "."]


def make_trace(
    rng: np.random.Generator, name: str, *, layers: int, hidden: int, heads: int, tokens: int
) -> dict[str, Any]:
    """Return one trace of random activations; equal rng states give equal traces."""
    causal = np.tril(np.ones((tokens, tokens), dtype=np.float32))
    attentions = []
    for _ in range(layers):
        weights = (
            np.exp(2 * rng.standard_normal((heads, tokens, tokens), dtype=np.float32)) * causal
        )
        attentions.append((weights / weights.sum(-1, keepdims=True)).astype(np.float16))
    words = [WORDS[i] for i in rng.integers(len(WORDS), size=tokens)]
    return {
        "hidden_states": [
            rng.standard_normal((tokens, hidden), dtype=np.float32).astype(np.float16)
            for _ in range(layers)
        ],
        "attentions": attentions,
        "tokens": rng.integers(32_000, size=tokens),
        "tokens_decoded": words,
        "generated_answer_clean": " ".join(words[:8]),
        "question_id": name,
    }


def write_batch(path: Path, traces: list[dict[str, Any]]) -> None:
    """Write a batch as the producer does."""
    with gzip.open(path, "wb", compresslevel=6) as file:
        pickle.dump(traces, file, protocol=4)


def format_size(n_bytes: int) -> str:
    """Return 352 MB for 352106919, as the script itself would."""
    text = tqdm.format_sizeof(n_bytes, "B", 1000)
    number = text.rstrip("BkMGT")
    return f"{float(number):g} {text[len(number) :]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--traces", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=50)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    shape = {key: getattr(args, key) for key in ("layers", "hidden", "heads", "tokens")}
    for number in range(args.files):
        rng = np.random.default_rng(number)
        traces = [make_trace(rng, f"q_{number}_{i}", **shape) for i in range(args.traces)]
        path = args.out_dir / f"batch_{number:04d}.pkl.gz"
        write_batch(path, traces)
        print(f"{path}: {len(traces)} traces, {format_size(path.stat().st_size)}")


if __name__ == "__main__":
    main()
