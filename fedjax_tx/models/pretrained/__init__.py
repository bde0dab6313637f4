"""Weights of Hugging Face's format, read and written by explicit maps of names."""

from fedjax_tx.models.pretrained.bert import load_bert, save_bert
from fedjax_tx.models.pretrained.gpt2 import load_gpt2, save_gpt2
from fedjax_tx.models.pretrained.minilm import minilm_folder
from fedjax_tx.models.pretrained.vit import load_vit, save_vit

__all__ = ["load_bert", "load_gpt2", "load_vit", "minilm_folder", "save_bert", "save_gpt2", "save_vit"]
