"""A recommender built from its settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from recbole_kd.errors import UserError
from recbole_kd.model.every_position import at_every_position
from recbole_kd.model.held_out import with_history
from recbole_kd.model.mlp0 import without_hidden_layers
from recbole_kd.model.trimming import trimmed
from recbole_kd.text import one_line

__all__ = ["build_model", "check_sizes"]


def build_model(config: Any, dataset: Any) -> nn.Module:
    """The recommender of `config`, initialised from the global random state, on its device.

    Before loading stored weights, build the model after `init_seed` with the seed of the stored model. Some models
    (NNCF) draw constants when they are built, which are not in the checkpoint.

    Raises:
        UserError: the model refuses its settings.
    """
    check_sizes(config, dataset)
    model_class = config.resolved.model_class
    if config.resolved.backbone in ("NeuMF", "NeuMFVariant") and not config["mlp_hidden_size"]:
        model_class = without_hidden_layers(model_class)
    if config["trim_padding"] and config.sequential:
        model_class = trimmed(model_class)
    if config.every_position:
        model_class = at_every_position(model_class)
    try:
        model: nn.Module = with_history(model_class, config, dataset).to(config["device"])
    except ImportError as error:
        raise UserError(f"{config['model']} needs a package that is not installed: {error}.") from None
    except (ValueError, TypeError, KeyError, AssertionError, IndexError, ZeroDivisionError, RuntimeError) as error:
        problem = one_line(error) or type(error).__name__
        if "memory" in problem:
            raise
        raise UserError(
            f"{config['model']} refuses its settings: {problem}. "
            f"See properties/model/{config.resolved.backbone}.yaml, here or in RecBole, for what it expects."
        ) from error
    return model


def check_sizes(config: Any, dataset: Any) -> None:
    """Refuses sizes with which RecBole's models fail in their first epoch, without a clear message.

    Raises:
        UserError: such a size.
    """
    fewest, most = sorted((dataset.user_num, dataset.item_num))
    clusters = config["num_clusters"]  # of NCL
    if clusters is not None and clusters > fewest - 1:
        raise UserError(
            f"--{config.prefix}num_clusters={clusters} is more than the {fewest - 1:,} users or items of the data; "
            "lower it."
        )
    # RaCT's critic, which only this stage trains, ranks this many items.
    critic = config.resolved.backbone == "RaCT" and config["train_stage"] == "critic_pretrain"
    if critic and config["metrics_k"] > dataset.item_num - 1:
        raise UserError(
            f"--{config.prefix}metrics_k={config['metrics_k']} is more than the {dataset.item_num - 1:,} items of "
            "the data; lower it."
        )
    # DGCF divides users and items among the batches. Of each it draws as many as the larger of the two shares.
    batches = dataset.inter_num // config["train_batch_size"] + 1
    correlated = config.resolved.backbone == "DGCF" and config["n_factors"] > 1 and config["cor_weight"] > 1e-9
    if correlated and int(most / batches) > fewest:
        largest = dataset.inter_num // -(-most // fewest)
        raise UserError(
            f"--{config.prefix}train_batch_size={config['train_batch_size']}: DGCF draws {int(most / batches):,} users "
            f"and items a step, more than the {fewest - 1:,} that there are of one kind; lower it to "
            f"{max(1, largest):,}, or set --{config.prefix}cor_weight=0."
        )
    masks = config.resolved.backbone == "BERT4Rec" and not config.every_position
    if masks and config["mask_ratio"] * config["MAX_ITEM_LIST_LENGTH"] < 1:
        raise UserError(
            f"--{config.prefix}mask_ratio={config['mask_ratio']} hides no item of a sequence of "
            f"--MAX_ITEM_LIST_LENGTH={config['MAX_ITEM_LIST_LENGTH']}; raise one of them."
        )
    if config.resolved.backbone == "NNCF":
        kernel, pool = config["conv_kernel_size"], config["pool_kernel_size"]
        if config["neigh_num"] < kernel + pool - 1:
            raise UserError(
                f"--{config.prefix}neigh_num={config['neigh_num']} is too small for NNCF's conv_kernel_size={kernel} "
                f"and pool_kernel_size={pool}; raise it to {kernel + pool - 1:,} or lower these."
            )
    if config["mf_train"] is False and config["mlp_train"] is False:  # of NeuMF
        raise UserError(
            f"--{config.prefix}mf_train and --{config.prefix}mlp_train are both false, but NeuMF needs one of them; "
            "set one to true."
        )
    if config.resolved.backbone == "ConvNCF":
        size = config["embedding_size"]
        for kernel, stride in zip(config["cnn_kernels"], config["cnn_strides"]):
            if size < kernel:
                raise UserError(
                    f"--{config.prefix}embedding_size={config['embedding_size']} is too small for ConvNCF's "
                    f"cnn_kernels={config['cnn_kernels']} and cnn_strides={config['cnn_strides']}; raise it."
                )
            size = (size - kernel) // stride + 1
