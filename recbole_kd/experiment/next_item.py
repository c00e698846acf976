"""How a next-item model learns: at one position of a sequence or at every one, and with which negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.model.every_position import AT_EVERY_POSITION, asks_for_every_position

__all__ = ["set_next_item_training"]


def set_next_item_training(config: Any, final: dict[str, Any]) -> None:
    """Sets negative sampling to none where the loader draws no negatives; RecBole makes the user set it.

    ``loss_type: CE`` compares with all items. Losses at every position draw their own negatives for each.

    Args:
        config: a sequential model's KDConfig, while its settings are resolved.
        final: the settings that become final; changed in place.

    Raises:
        UserError: settings of the loss, of negatives or of hidden items that contradict each other.
    """
    at_every_position = _learns_at_every_position(config, final)
    if at_every_position and config.resolved.backbone == "BERT4Rec":
        if config.external_config_dict.get("transform") is not None:
            raise UserError(
                f"--{config.prefix}transform={final['transform']}: with --{config.prefix}every_position=True BERT4Rec "
                "hides items by itself; leave it out."
            )
        final["transform"] = None
    negatives = final.get("train_neg_sample_args")
    none = negatives is None or (isinstance(negatives, Mapping) and negatives.get("distribution") in (None, "none"))
    objective = final.get("loss_type")
    if objective == "CE" or at_every_position:
        if config.external_config_dict.get("train_neg_sample_args") is not None and not none:
            what = f"{'loss_type=BCE' if objective == 'BCE' else 'every_position=True'} draws one negative for "
            what += "each position, uniformly"
            if objective == "CE":
                what = "loss_type=CE compares with every item and draws no negatives"
            raise UserError(
                f"--{config.prefix}train_neg_sample_args is set, but --{config.prefix}{what}; leave it out."
            )
        final["train_neg_sample_args"] = None
    elif none and (objective == "BPR" or hasattr(config.resolved.model_class, "input_type")):
        raise UserError(
            f"{config.resolved.backbone} compares with negatives (loss_type BPR), but "
            f"--{config.prefix}train_neg_sample_args draws none; leave it out."
        )


def _learns_at_every_position(config: Any, final: Mapping[str, Any]) -> bool:
    """Whether the loss is taken at every position of whole sequences (``every_position``, ``loss_type: BCE``)."""
    objective, backbone = final.get("loss_type"), config.resolved.backbone
    bce = objective == "BCE"
    if not asks_for_every_position(final):
        return False
    what = f"--{config.prefix}{'loss_type=BCE' if bce else 'every_position=True'}"
    known = AT_EVERY_POSITION.get(backbone, ())
    if not known or (bce and "BCE" not in known):
        able = [name for name, losses in AT_EVERY_POSITION.items() if not bce or "BCE" in losses]
        raise UserError(
            f"{what} learns at every position of a sequence. It is for {', '.join(able)}, not for {backbone}; "
            "leave it out."
        )
    if objective is not None and objective not in known:
        raise UserError(
            f"{what}: {backbone} learns so by --{config.prefix}loss_type={' or '.join(known)}, not by {objective}."
        )
    return True
