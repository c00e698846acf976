"""A sequential student and teacher on data whose next item is known, without files written for either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed

from recbole_kd.contracts import Batch, DataView, Sequences
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.cache import Trained
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.testing import known_sequences_settings

#: Sizes that make each model small and without chance.
SMALL: dict[str, dict[str, Any]] = {
    "GRU4Rec": {"embedding_size": 8, "hidden_size": 12, "dropout_prob": 0.0},
    "SASRec": {
        "hidden_size": 8,
        "inner_size": 8,
        "n_heads": 2,
        "n_layers": 1,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    },
    "BERT4Rec": {
        "hidden_size": 8,
        "inner_size": 8,
        "n_heads": 2,
        "n_layers": 1,
        "mask_ratio": 0.4,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    },
    "SRGNN": {"embedding_size": 8},
    "GCSAN": {
        "hidden_size": 8,
        "inner_size": 8,
        "n_layers": 1,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    },
    "LightSANs": {
        "hidden_size": 8,
        "inner_size": 8,
        "n_layers": 1,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    },
    "NARM": {"embedding_size": 8, "hidden_size": 8, "dropout_probs": [0.0, 0.0]},
    "NextItNet": {"embedding_size": 8, "block_num": 1},
    "STAMP": {"embedding_size": 8},
    "STOSA": {"hidden_size": 4, "inner_size": 8, "n_heads": 2, "n_layers": 1, "hidden_dropout_prob": 0.0},
}


class SequentialBench:
    """`student` and `teacher` untrained on known sequences; the teacher's weights are enlarged, to have opinions."""

    def __init__(self, data_path: Path, student: str, teacher: str = "SASRec", **settings: Any) -> None:
        self.config = self._config(data_path, student, settings)
        init_seed(0, True)
        self.splits = Splits(self.config)
        self.train, self.valid, self.test = make_loaders(self.config, self.splits)
        self.model: Any = build_model(self.config, self.splits.train)
        if hasattr(self.model, "output_bias"):  # 0 at first, as if it were not there
            with torch.no_grad():
                self.model.output_bias.copy_(torch.linspace(-2, 2, len(self.model.output_bias)))
        config = self._config(data_path, teacher, {})
        make_loaders(config, self.splits)
        model = build_model(config, self.splits.train)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
        trained = Trained(config, model, "none", False, {"test_result": {}})
        self.teacher = FrozenTeacher(trained, self.splits, str(data_path / "ranks"))
        self.student = ModelStudent(self.model)
        self.data = DataView(self.splits.observed, epochs=4, seed=1, device=self.config["device"])

    @staticmethod
    def _config(data_path: Path, model: str, settings: dict[str, Any]) -> KDConfig:
        given = known_sequences_settings(data_path, **{**SMALL[model], **settings})
        return KDConfig(model, "known-sequences", config_dict={**given, "distill": []})

    def interaction(self, size: int) -> Any:
        """The first `size` training rows: sequences and their next items."""
        return self.splits.train.inter_feat[list(range(size))].to(self.config["device"])

    def batch(self, size: int = 32) -> Batch:
        """The same as a distiller sees them."""
        rows = self.interaction(size)
        return Batch(rows["user_id"], rows["item_id"], sequences=Sequences(rows["item_id_list"], rows["item_length"]))
