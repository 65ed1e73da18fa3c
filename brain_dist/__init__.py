"""Distributed training and honest evaluation of brain-tumour MRI classifiers."""

__version__ = "0.1.0"
