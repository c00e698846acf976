"""NeuMF without hidden layers: MLP-0 of He et al., Neural Collaborative Filtering (WWW 2017, table 3).

Its last layer reads the concatenated embeddings of the MLP's user and item.
"""

from __future__ import annotations

from typing import Any

__all__ = ["without_hidden_layers"]


class _NoSizes(list[int]):
    """The sizes of no hidden layers, in the form that NeuMF reads: a last size, and nothing added to its layers."""

    def __radd__(self, layers: list[int]) -> list[int]:
        return layers


class _Settings:
    """A model's settings without hidden layers."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        # The MLP's output is its input.
        return _NoSizes([2 * self._config["mlp_embedding_size"]]) if key == "mlp_hidden_size" else self._config[key]


class _WithoutHiddenLayers:
    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(_Settings(config), dataset)  # type: ignore[call-arg]


def without_hidden_layers(model_class: type[Any]) -> type[Any]:
    """The subclass of RecBole's NeuMF for ``mlp_hidden_size: []``."""
    return type(model_class.__name__, (_WithoutHiddenLayers, model_class), {"__module__": model_class.__module__})
