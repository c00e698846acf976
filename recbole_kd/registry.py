"""Tables of the models, distillers and recipes that the command line can name; lookup errors list the choices."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Optional

import torch

from recbole_kd.contracts import Distiller
from recbole_kd.errors import UserError, closest
from recbole_kd.files.properties import model_names, read_properties

_RECBOLE = "recbole.model.general_recommender"


@dataclass(frozen=True)
class ModelEntry:
    """A recommender class that can be a student or a teacher.

    Attributes:
        path: "module:Class".
        summary: one line for ``recbole-kd list``.
        gradient: whether it is trained by gradient; other models can be teachers but not students.
        requires: "module (pip name)" that RecBole imports only when such a model trains.
        sequential: whether it predicts the next item of a sequence.
    """

    path: str
    summary: str
    gradient: bool = True
    requires: str = ""
    sequential: bool = False


def _recbole(name: str, summary: str, gradient: bool = True) -> ModelEntry:
    return ModelEntry(f"{_RECBOLE}:{name}", summary, gradient)


def _sequential(name: str, summary: str) -> ModelEntry:
    return ModelEntry(f"recbole.model.sequential_recommender:{name}", f"next item: {summary}", sequential=True)


#: Architectures. RecBole's are listed by name, so that none of our classes hides one of RecBole's.
MODELS: dict[str, ModelEntry] = {
    "SimRecStudent": ModelEntry("recbole_kd.model.simrec:SimRecStudent", "MLP over embedding tables (SimRec)"),
    "SimRecTeacher": ModelEntry("recbole_kd.model.simrec:SimRecTeacher", "sum of graph convolutions (SimRec)"),
    "BPR": _recbole("BPR", "matrix factorisation with the BPR loss"),
    "LightGCN": _recbole("LightGCN", "mean of linear graph convolutions"),
    "SimpleX": _recbole("SimpleX", "cosine contrastive loss with a history aggregator"),
    "NeuMF": _recbole("NeuMF", "matrix factorisation fused with an MLP"),
    "ADMMSLIM": _recbole("ADMMSLIM", "sparse linear item model by ADMM", gradient=False),
    "AsymKNN": _recbole("AsymKNN", "asymmetric neighbourhood model", gradient=False),
    "CDAE": _recbole("CDAE", "collaborative denoising autoencoder"),
    "ConvNCF": _recbole("ConvNCF", "convolutions over outer products of embeddings"),
    "DGCF": _recbole("DGCF", "disentangled graph collaborative filtering"),
    "DMF": _recbole("DMF", "deep matrix factorisation"),
    "DiffRec": _recbole("DiffRec", "diffusion over a user's history"),
    "EASE": _recbole("EASE", "closed-form linear item model", gradient=False),
    "ENMF": _recbole("ENMF", "matrix factorisation without negative sampling"),
    "FISM": _recbole("FISM", "factored item similarities"),
    "GCMC": _recbole("GCMC", "graph convolutional matrix completion"),
    "ItemKNN": _recbole("ItemKNN", "item neighbourhoods", gradient=False),
    "LDiffRec": _recbole("LDiffRec", "diffusion in a latent space"),
    "LINE": _recbole("LINE", "network embedding of first and second order"),
    "MacridVAE": _recbole("MacridVAE", "disentangled variational autoencoder"),
    "MultiDAE": _recbole("MultiDAE", "denoising autoencoder, multinomial likelihood"),
    "MultiVAE": _recbole("MultiVAE", "variational autoencoder, multinomial likelihood"),
    "NAIS": _recbole("NAIS", "attentive item similarities"),
    "NCEPLRec": _recbole("NCEPLRec", "linear model with noise-contrastive embeddings", gradient=False),
    "NCL": ModelEntry(
        f"{_RECBOLE}:NCL", "graph model with neighbourhood-enriched contrast", requires="faiss (faiss-cpu)"
    ),
    "NGCF": _recbole("NGCF", "non-linear graph convolutions"),
    "NNCF": _recbole("NNCF", "neighbourhood-based neural filtering"),
    "Pop": _recbole("Pop", "most popular items, by how many batches hold them", gradient=False),
    "RaCT": _recbole("RaCT", "autoencoder with a learned ranking critic"),
    "Random": _recbole("Random", "random scores", gradient=False),
    "RecVAE": _recbole("RecVAE", "variational autoencoder with a composite prior"),
    "SGL": _recbole("SGL", "graph model with self-supervised contrast"),
    "SLIMElastic": _recbole("SLIMElastic", "sparse linear item model, elastic net", gradient=False),
    "SpectralCF": _recbole("SpectralCF", "spectral graph convolutions"),
    "LightGCNVariant": ModelEntry(
        "recbole_kd.model.graph_variants:LightGCNVariant", "LightGCN with other layer weights, norms, self-loops"
    ),
    "NGCFVariant": ModelEntry(
        "recbole_kd.model.graph_variants:NGCFVariant", "NGCF without feature transformation, activation, or both"
    ),
    "MultiVAEVariant": ModelEntry(
        "recbole_kd.model.autoencoders:MultiVAEVariant",
        "MultiVAE with other likelihoods, unit noise, annealing that stops",
    ),
    "MultiDAEVariant": ModelEntry(
        "recbole_kd.model.autoencoders:MultiDAEVariant", "MultiDAE with gaussian and logistic likelihoods"
    ),
    "NeuMFVariant": ModelEntry(
        "recbole_kd.model.neumf_variant:NeuMFVariant", "NeuMF with squared loss, weighted or frozen towers"
    ),
    "WMF": ModelEntry("recbole_kd.model.factorisation:WMF", "matrix factorisation, squared loss on all items"),
    "BiasMF": ModelEntry("recbole_kd.model.factorisation:BiasMF", "matrix factorisation with biases, squared loss"),
    "STOSA": ModelEntry(
        "recbole_kd.model.stosa:STOSA", "next item: stochastic self-attention, items as Gaussians", sequential=True
    ),
    "GRU4Rec": _sequential("GRU4Rec", "recurrent network"),
    "SASRec": _sequential("SASRec", "self-attention over the past"),
    "BERT4Rec": _sequential("BERT4Rec", "self-attention in both directions, over masked sequences"),
    "SRGNN": _sequential("SRGNN", "gated graph network over a session's items"),
    "GCSAN": _sequential("GCSAN", "gated graph network and self-attention"),
    "LightSANs": _sequential("LightSANs", "self-attention of low rank"),
    "NARM": _sequential("NARM", "recurrent network with attention"),
    "NextItNet": _sequential("NextItNet", "dilated convolutions"),
    "STAMP": _sequential("STAMP", "attention over the past and the last item"),
}


@dataclass(frozen=True)
class DistillerEntry:
    """Where a distiller's class is.

    Attributes:
        path: "module:Class".
        sequential: "module:Class" of the class for sequential models; "" if the method has none.
    """

    path: str
    sequential: str = ""


def _ours(path: str, sequential: str = "") -> DistillerEntry:
    """Paths below :mod:`recbole_kd.distiller`; ``sequential="same"``: one class serves both."""
    paths = [f"recbole_kd.distiller.{each}" if each else "" for each in (path, sequential)]
    return DistillerEntry(paths[0], paths[0] if sequential == "same" else paths[1])


#: Our distillers; a distiller's name is its section in the configuration.
DISTILLERS: dict[str, DistillerEntry] = {
    "simrec": _ours("simrec:SimRecDistiller"),
    "rd": _ours("rd:RDDistiller"),
    "cd": _ours("cd:CDDistiller", sequential="cd:CDSequenceDistiller"),
    "rrd": _ours("rrd:RRDDistiller", sequential="rrd:RRDSequenceDistiller"),
    "ir_rrd": _ours("ir_rrd:IRRRDDistiller"),
    "unkd": _ours("unkd:UnKDDistiller"),
    "kd": _ours("kd:KDDistiller", sequential="kd:KDSequenceDistiller"),
    "dkd": _ours("dkd:DKDDistiller", sequential="same"),
    "dcd": _ours("dcd:DCDDistiller"),
    "fitnet": _ours("fitnet:FitNetDistiller", sequential="same"),
    "de": _ours("de:DEDistiller", sequential="same"),
    "freqd": _ours("freqd:FreqDDistiller"),
    "phr": _ours("phr:PHRDistiller", sequential="same"),
    "ftd": _ours("ftd:FTDDistiller", sequential="same"),
    "htd": _ours("htd:HTDDistiller", sequential="same"),
    "rkd": _ours("rkd:RKDDistiller", sequential="same"),
}


#: Name -> "module:Class" of distillers of other packages that were named by path in this process.
_NAMED_BY_PATH: dict[str, str] = {}


@cache
def _offered(group: str) -> dict[str, str]:
    """Name -> "module:Class" of the classes that installed packages offer under an entry point group."""
    points: Any = metadata.entry_points()
    chosen = points.select(group=group) if hasattr(points, "select") else points.get(group, [])
    return {point.name: point.value for point in chosen}


def distillers() -> dict[str, DistillerEntry]:
    """Name -> entry of every distiller: ours, those of installed packages, those named by their path.

    A class of another package is also tried for sequential models; its needs say whether it can serve them.
    """
    others = {**_offered("recbole_kd.distillers"), **_NAMED_BY_PATH}
    return {**{name: DistillerEntry(path, path) for name, path in others.items()}, **DISTILLERS}


def models() -> dict[str, ModelEntry]:
    """Name -> entry of every architecture: ours, RecBole's, those of installed packages."""
    offered = {
        name: ModelEntry(path, f"from {path.partition(':')[0]}") for name, path in _offered("recbole_kd.models").items()
    }
    return {**offered, **MODELS}


def distiller_name(given: str) -> str:
    """A distiller's name: `given` itself, or the name of the class at "module:Class".

    The module belongs to an installed package, or is a file in the working folder.

    Raises:
        UserError: no such name or class, the class is not a distiller, or its name is taken.
    """
    if ":" not in given:
        return lookup("distiller", given, distillers(), "distill")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `recbole-kd` does not search it; as the last entry it hides no package
    kind = _checked_distiller(given)
    if distillers().get(kind.name, DistillerEntry(given)).path != given:
        raise UserError(f"'{given}' has name = '{kind.name}', but there is a distiller of that name; rename it.")
    _NAMED_BY_PATH[kind.name] = given
    return kind.name


def given_name(distiller: str) -> str:
    """A distiller's name as another process can resolve it: the name, or its "module:Class"."""
    return _NAMED_BY_PATH.get(distiller, distiller)


@dataclass(frozen=True)
class Resolved:
    """The resolved ``--model`` (and ``--student``).

    Attributes:
        name: as the user gave it; the class has this name in logs and checkpoints.
        backbone: the architecture's name; its properties hold the defaults.
        model_class: the recommender class; for a recipe, a subclass of its backbone with the recipe's name.
        recipe: the recipe's properties, empty for an architecture.
    """

    name: str
    backbone: str
    model_class: type[Any]
    recipe: Mapping[str, Any]


def recipes() -> dict[str, dict[str, Any]]:
    """Recipe name -> its properties: the model files that name a ``student``."""
    found = {name: read_properties("model", name) for name in model_names()}
    return {name: properties for name, properties in found.items() if "student" in properties}


def lookup(kind: str, name: str, choices: Iterable[str], setting: str) -> str:
    """`name` as spelled in the table.

    Raises:
        UserError: not a choice; the message names the closest one, and all of them if they are few.
    """
    names = list(choices)
    if name in names:
        return name
    listing = f" Choices: {', '.join(names)}." if len(names) <= 30 else ""
    raise UserError(
        f"Unknown {kind} '{name}'.{closest(str(name), names)}{listing} "
        f"Set --{setting}=NAME; 'recbole-kd list' shows every {kind}."
    )


def load_class(path: str) -> type[Any]:
    """The class at "module:Class"."""
    module, _, name = path.partition(":")
    anomalies = torch.is_anomaly_enabled()
    loaded: type[Any] = getattr(importlib.import_module(module), name)
    # When RecBole's sine.py is imported, it switches on torch's slow anomaly detection for the whole process.
    torch.autograd.set_detect_anomaly(anomalies)
    return loaded


def resolve_model(name: str, student: Optional[str] = None, setting: str = "model") -> Resolved:
    """The recommender behind a model's or a recipe's name.

    Args:
        name: an architecture of :data:`MODELS` or a recipe.
        student: another backbone for a recipe (``--student=LightGCN``).
        setting: the setting to name in an error.
    """
    known_recipes = recipes()
    architectures = models()
    if name not in architectures and name not in known_recipes and _is_recboles(name):
        raise UserError(
            f"--{setting}={name}: RecBole has this model, but it cannot be run here (docs/sequential.md says why for "
            "sequential models); 'recbole-kd list --kind=students' shows those that can."
        )
    lookup("model", name, [*architectures, *known_recipes], setting)
    if name in known_recipes:
        recipe = known_recipes[name]
        backbone = lookup("student", student or recipe["student"], architectures, "student")
        _require_package(backbone, architectures[backbone].requires)
        model_class = type(name, (_model_class(backbone),), {"__module__": __name__})
        return Resolved(name, backbone, model_class, recipe)
    if student is not None and student != name:
        raise UserError(
            f"--student={student} changes the backbone of a recipe, but {name} is an architecture, not a recipe; "
            f"set --model={student}."
        )
    _require_package(name, architectures[name].requires)
    return Resolved(name, name, _model_class(name), {})


def _is_recboles(name: str) -> bool:
    """Whether RecBole has a model of this name, of any kind."""
    return any(
        importlib.util.find_spec(f"recbole.model.{kind}.{str(name).lower()}") is not None
        for kind in ("sequential_recommender", "context_aware_recommender", "knowledge_aware_recommender")
        if str(name).isidentifier()
    )


def _model_class(name: str) -> type[Any]:
    """
    Raises:
        UserError: a model of another package, which cannot be loaded.
    """
    path = models()[name].path
    try:
        return load_class(path)
    except (ImportError, AttributeError, SyntaxError) as error:
        if name in MODELS:
            raise
        raise UserError(f"There is no model at '{path}' ({error}); reinstall or remove its package.") from None


def _require_package(model: str, requires: str) -> None:
    module, _, package = requires.partition(" ")
    if module and importlib.util.find_spec(module) is None:
        raise UserError(f"{model} needs the package {module}; run: pip install {package.strip('()')}.")


def distiller_class(name: str, sequential: bool = False) -> type[Distiller[Any]]:
    """The distiller of that name, for general models or for sequential ones.

    Raises:
        UserError: no such distiller, or a class of another package that cannot be loaded or is not a distiller.
    """
    entry = distillers()[lookup("distiller", name, distillers(), "distill")]
    path = entry.sequential if sequential and entry.sequential else entry.path
    return load_class(path) if name in DISTILLERS else _checked_distiller(path)


@cache
def _checked_distiller(path: str) -> type[Distiller[Any]]:
    """The distiller of another package at "module:Class".

    Raises:
        UserError: there is none, or it lacks an attribute that every distiller has.
    """
    try:
        kind = load_class(path)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"There is no distiller at '{path}' ({error}); expected module:Class of an installed package, or of a file "
            "in this folder; see --distill."
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Distiller)):
        raise UserError(f"'{path}' is not a distiller; expected a subclass of recbole_kd.contracts.Distiller.")
    for attribute, written in {"name": "name = 'mine'", "options_class": "Distiller[MyOptions]"}.items():
        if not hasattr(kind, attribute):
            raise UserError(f"'{path}' has no `{attribute}`; write `{written}` in the class; see CONTRIBUTING.md.")
    if not str(kind.name).isidentifier():
        raise UserError(f"'{path}' has name = {kind.name!r}; expected a word of letters, digits and _, such as 'mine'.")
    return kind
