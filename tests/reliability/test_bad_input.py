"""What users get wrong, in one table: each gives one line that says what to mend, exit code 2, and nothing
half-written.

A case is a list of words, or a function of the data path that damages something there and returns the words.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_kd.cli import VERBS, main, parse
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.testing import known_answer_settings, write_known_answer
from tests.test_cli import quick

Case = tuple[Union[list[str], Callable[[Path], list[str]]], str]
ML = "--dataset=ml-100k"
BPR = ["--model=BPR", ML]


def on_known_answer(**given: Any) -> Callable[[Path], list[str]]:
    """A training on the known-answer data with these settings."""
    return lambda data: quick(data, **{"model": "BPR", **given})


def damaged(damage: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    """A training on known-answer data whose file of training pairs was damaged."""

    def words(data: Path) -> list[str]:
        damage(data / "known-answer" / "known-answer.train.inter")
        return quick(data, model="BPR")

    return words


def lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    return lambda path: _write(path, "\n".join(change(path.read_text().splitlines())) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def table(*rows: str, **given: Any) -> Callable[[Path], list[str]]:
    """A training on a file of these rows."""

    def words(data: Path) -> list[str]:
        (data / "own").mkdir()
        _write(data / "own" / "own.inter", "".join(row + "\n" for row in rows))
        return quick(data, model="BPR", dataset="own", benchmark_filename=None, **given)

    return words


def settings_file(text: str, *verb: str) -> Callable[[Path], list[str]]:
    """A training, or what `verb` says, with a settings file of this text."""

    def words(data: Path) -> list[str]:
        _write(data / "x.yaml", text)
        return [*(verb or quick(data, model="BPR")), f"--config_files={data / 'x.yaml'}"]

    return words


def with_checkpoint(*words: str, **changed: Any) -> Callable[[Path], list[str]]:
    """A verb on a checkpoint that a run left."""

    def made(data: Path) -> list[str]:
        assert main(quick(data, model="BPR")) == 0
        (checkpoint,) = (data / "saved").glob("BPR-*[0-9].pth")
        own = {"checkpoint": checkpoint, "data_path": data, **changed}
        return [*words, *(f"--{key}={value}" for key, value in own.items())]

    return made


def another_split(data: Path) -> list[str]:
    """An evaluation on fewer training pairs than the checkpoint's."""
    words = with_checkpoint("evaluate")(data)
    lines(lambda rows: rows[:-1])(data / "known-answer" / "known-answer.train.inter")
    return words


def space(text: str) -> Callable[[Path], list[str]]:
    """A search over a space of this text."""

    def words(data: Path) -> list[str]:
        _write(data / "x.hyper", text)
        return ["tune", *quick(data, model="BPR", params_file=data / "x.hyper", trials=1)]

    return words


def results(text: str) -> Callable[[Path], list[str]]:
    """A report on results of this text."""

    def words(data: Path) -> list[str]:
        _write(data / "results.json", text)
        return ["report", f"--results={data / 'results.json'}"]

    return words


def ranks(text: str) -> Callable[[Path], list[str]]:
    """A training on ranked lists of this text."""

    def words(data: Path) -> list[str]:
        _write(data / "lists.csv", text)
        return quick(data, model="RRDStudent", **{"teacher.ranks": data / "lists.csv"})

    return words


#: What a user gets wrong -> a part of the one line that says so.
BAD: dict[str, Case] = {
    # Words
    "verb": (["lsit"], "Did you mean 'list'"),
    "a word without dashes": (["train", "model"], "'model' is not a setting"),
    "one dash": (["-model=BPR"], "'-model=BPR' is not a setting"),
    "no value": (["--model"], "--model has no value"),
    "no value before the next": (["--epochs", "--seed=1"], "--epochs has no value"),
    "no name": (["--=3"], "has no name before the '='"),
    "twice": (["--epochs=1", "--epochs=2"], "--epochs is given twice"),
    "two dashes alone": (["--"], "'--' is not a setting"),
    # Names
    "no model": (["--dataset=ml-100k"], "No model is given"),
    "no dataset": (["--model=BPR"], "No dataset is given"),
    "model": (["--model=BRP", ML], "Did you mean 'BPR'"),
    "a model of another kind": (["--model=DeepFM", ML], "RecBole has this model, but it cannot be run here"),
    "a next-item model that is not offered": (["--model=Caser", ML], "docs/sequential.md says why"),
    "the beginning of a name": (["--model=SimRec", ML], "Did you mean 'SimRecStudent'"),
    "a name like no other": (["--model=Quark", ML], "Unknown model 'Quark'. Set --model"),
    "dataset": (["--model=BPR", "--dataset=gowala", "--data_path=none"], "Did you mean 'gowalla'"),
    "dataset with a folder": (["--model=BPR", "--dataset=data/ml-100k"], "is not a name"),
    "teacher": (["--model=BPR", ML, "--teacher=LightGNC", "--distill=simrec"], "'LightGCN'"),
    "distiller": (["--model=BPR", ML, "--distill=simrek"], "Did you mean 'simrec'"),
    "no list of distillers": ([*BPR, "--distill=3"], "--distill=3 is not a list of distillers"),
    "key": (["--model=BPR", ML, "--lerning_rate=1"], "Did you mean 'learning_rate'"),
    "key of the teacher": (["--model=FreqDStudent", ML, "--teacher.n_layer=2"], "'teacher.n_layer'"),
    "option": (["--model=SimRecStudent", ML, "--simrec.tripelts=8"], "Did you mean 'triplets'"),
    "section that is not used": (["--model=BPR", ML, "--simrec.epsilon=1"], "--distill is empty"),
    "section that is a number": (["--model=SimRecStudent", ML, "--simrec=3"], "Section 'simrec' is 3"),
    "section with an empty part": ([*BPR, "--simrec.=3"], "has an empty part"),
    "sevo without its learner": ([*BPR, "--sevo.beta=0.5"], "Section 'sevo' is set but not used"),
    "student of no recipe": (["--model=SimRecStudent", ML, "--student=BPR"], "changes the backbone of a recipe"),
    "metric": (["--model=BPR", ML, "--metrics=[NDGC]"], "Did you mean 'ndcg'"),
    "metric that is not computed": ([*BPR, "--valid_metric=NDCG@7"], "--valid_metric=NDCG@7 is not computed"),
    "values of a ranking": ([*BPR, "--metrics=[AUC]", "--valid_metric=AUC"], "set --eval_args.mode=labeled"),
    "labels that there are not": (
        on_known_answer(metrics="[AUC]", valid_metric="AUC", **{"eval_args.mode": "labeled"}),
        "has no column 'label'; make it with --threshold",
    ),
    "losses of scores that are no probabilities": (
        on_known_answer(metrics="[LogLoss]", valid_metric="LogLoss", **{"eval_args.mode": "uni1"}),
        "the scores of BPR are between",
    ),
    "a GPU that is not there": ([*BPR, "--device=cuda"], "--device=cuda asks for a GPU, but torch finds none"),
    "a GPU of another number": ([*BPR, "--gpu_id=97"], "--gpu_id=97 asks for a GPU, but torch finds none"),
    "a GPU on a machine without": ([*BPR, "--use_gpu=true"], "--use_gpu=true asks for a GPU, but torch finds none"),
    "one user": (
        table("user_id:token\titem_id:token", *(f"ann\ti{item}" for item in range(12))),
        "Negatives cannot be sampled: Some users have interacted with all items",
    ),
    "one item": (
        table(
            "user_id:token\titem_id:token", *(f"u{user}\tonly" for user in range(12)), topk="[1]", valid_metric="NDCG@1"
        ),
        "The validation split of own is empty",
    ),
    "a header without types": (
        table("user_id\titem_id", "ann\ti1"),
        "Write 'user_id:token\\titem_id:token', or convert the file with 'recbole-kd prepare",
    ),
    "learner": (["--model=BPR", ML, "--learner=adan"], "Did you mean 'adam'"),
    "schedule": ([*BPR, "--learning_rate_schedule=cosin"], "learning_rate_schedule='cosin' is not one of"),
    # Values
    "temperature": (["--model=SimRecStudent", ML, "--simrec.embedding_temperature=-1"], "expected above 0"),
    "a share above 1": (["--model=SimRecStudent", ML, "--simrec.epsilon=2"], "at most 1"),
    "a whole number": (["--model=SimRecStudent", ML, "--simrec.triplets=2.5"], "is not a whole number"),
    "a number": (["--model=SimRecStudent", ML, "--simrec.decay_weight=none"], "is not a number"),
    "not a number": (["--model=SimRecStudent", ML, "--simrec.decay_weight=.nan"], "simrec.decay_weight"),
    "a choice": (["--model=RRDStudent", ML, "--rrd.sampling=tpo"], "Did you mean 'top'"),
    "true or false": (["--model=DEStudent", ML, "--de.squared=perhaps"], "is not true or false"),
    "more than the pool": (["--model=RRDStudent", ML, "--rrd.interesting=200"], "rrd.pool=100"),
    "an increasing filter": (["--model=FreqDStudent", ML, "--freqd.filter=[1,1]"], "freqd.filter"),
    "a filter of nothing": (["--model=FreqDStudent", ML, "--freqd.filter=[0]"], "removes every frequency"),
    "dropout": (["--model=NeuMF", ML, "--dropout_prob=2"], "--dropout_prob=2"),
    "dropout of the teacher": (
        ["--model=SimRecStudent", ML, "--teacher=NeuMF", "--teacher.dropout_prob=2"],
        "--teacher.dropout_prob=2",
    ),
    "type": (["--model=BPR", ML, "--embedding_size=big"], "--embedding_size='big'"),
    "list for a number": (["--model=BPR", ML, "--embedding_size=[1]"], "embedding_size"),
    "a size of 0": ([*BPR, "--embedding_size=0"], "expected a whole number of at least 1"),
    "negative epochs": ([*BPR, "--epochs=-1"], "expected a whole number of at least 0"),
    "negative seed": ([*BPR, "--seed=-1"], "--seed=-1"),
    "a seed beyond 32 bits": ([*BPR, "--seed=4294967296"], "--seed=4294967296"),
    "a negative rate": ([*BPR, "--learning_rate=-0.1"], "--learning_rate=-0.1"),
    "a rate in words": ([*BPR, "--learning_rate=fast"], "--learning_rate='fast'"),
    "a negative decay": ([*BPR, "--weight_decay=-1"], "--weight_decay=-1"),
    "a batch of nothing": ([*BPR, "--train_batch_size=0"], "--train_batch_size=0"),
    "a cutoff of 0": ([*BPR, "--topk=[0]"], "--topk=[0]"),
    "a cutoff in words": ([*BPR, "--topk=ten"], "--topk='ten'"),
    "a cutoff beyond the catalogue": (on_known_answer(topk="[50]", valid_metric="NDCG@50"), "--topk"),
    "half precision": (
        on_known_answer(model="LightGCN", enable_amp="true"),
        "--enable_amp=true: on this device LightGCN needs operations that torch has only in full precision",
    ),
    "a name of thousands of letters": (["--model=BPR", f"--dataset={'x' * 5000}"], "File name too long"),
    "seeds without end": (["compare", ML, "--models=BPR", "--seeds=999999999"], "at most 10,000"),
    "trials without end": (["tune", "--model=BPR", ML, "--trials=999999999"], "at most 10,000"),
    "shuffling": ([*BPR, "--shuffle=perhaps"], "--shuffle='perhaps'"),
    "how to evaluate": ([*BPR, "--eval_args=3"], "Section 'eval_args' is 3; expected options by name"),
    "how to rank": ([*BPR, "--eval_args={mode: partial}"], "--eval_args.mode='partial'; expected full, labeled"),
    "a part of how to evaluate": (
        [*BPR, "--eval_args={mod: full}"],
        "Unknown option 'eval_args.mod'. Did you mean 'mode'",
    ),
    "a part of how to evaluate, by its dotted name": ([*BPR, "--eval_args.oder=TO"], "Did you mean 'order'"),
    "a split to rank": ([*BPR, "--eval_args={mode: {valid: full, tset: uni100}}"], "'eval_args.mode.tset'"),
    "a part of how to sample": (
        [*BPR, "--train_neg_sample_args={sample_nun: 2}"],
        "Unknown option 'train_neg_sample_args.sample_nun'. Did you mean 'sample_num'",
    ),
    "a part of how the teacher samples": (
        ["--model=RRDStudent", ML, "--teacher.train_neg_sample_args.dist=popularity"],
        "Unknown option 'teacher.train_neg_sample_args.dist'",
    ),
    "a name twice": ([*BPR, "--eval_args={order: RO, order: TO}"], "'order' is given twice; keep one"),
    "a name twice, as Python": ([*BPR, "--eval_args={'order': 'RO', 'order': 'TO'}"], "has the same name twice"),
    "no seed": ([*BPR, "--seed="], "--seed=''; expected a whole number"),
    "a rate beyond float32": ([*BPR, "--learning_rate=1e300"], "--learning_rate=1e+300; expected a number of at least"),
    "a batch of everything": ([*BPR, "--train_batch_size=1e18"], "--train_batch_size=1e+18; expected a whole number"),
    "no metric": ([*BPR, "--metrics=[]"], "--metrics=[]; expected"),
    "no cutoff": ([*BPR, "--valid_metric=NDCG@"], "expected a metric and a cutoff, such as NDCG@20"),
    "workers without end": ([*BPR, "--worker=100000"], "--worker=100000; expected a whole number"),
    "decimals without end": (
        [*BPR, "--loss_decimal_place=1e9"],
        "expected a whole number of at least 0 and at most 16",
    ),
    "a clip of another name": ([*BPR, "--clip_grad_norm={foo: 1}"], "Unknown option 'clip_grad_norm.foo'"),
    "negatives below none": ([*BPR, "--train_neg_sample_args.sample_num=-1"], "sample_num=-1; expected a whole number"),
    "no candidates": (
        [*BPR, "--train_neg_sample_args={dynamic: true, candidate_num: 0}"],
        "candidate_num=0, but dynamic is true",
    ),
    "a level of the log": ([*BPR, "--state=5"], "--state='5' is not one of DEBUG, INFO"),
    "an encoding": ([*BPR, "--encoding=x"], "--encoding='x'; expected an encoding"),
    "a transform of no sequence": (
        [*BPR, "--transform=crop_itemseq"],
        "crop_itemseq changes sequences, but BPR has none",
    ),
    "a transform without its share": (
        ["--model=SASRec", ML, "--transform=crop_itemseq"],
        "--transform=crop_itemseq needs the share of a sequence that it changes, from 0 to 1; set --eta",
    ),
    "an empty transform": (
        ["--model=SASRec", ML, "--transform=user_defined"],
        "is an empty template in RecBole",
    ),
    "another transform": (
        ["--model=BERT4Rec", ML, "--transform=None"],
        "BERT4Rec needs its own transform mask_itemseq",
    ),
    "a transform": ([*BPR, "--transform=x"], "--transform='x' is not one of mask_itemseq"),
    "a column that is a list": (on_known_answer(USER_ID_FIELD="[a]"), "has no column '[a]'"),
    "a prefix of nothing": ([*BPR, "--NEG_PREFIX="], "--NEG_PREFIX=''; expected a name"),
    "files that are a number": ([*BPR, "--benchmark_filename=5"], "--benchmark_filename=5 is not a list"),
    "the same file three times": (on_known_answer(benchmark_filename="[train,train,train]"), "names of three files"),
    "negatives without end": (
        [*BPR, "--train_neg_sample_args.sample_num=1000000000"],
        "expected a whole number of at least 1 and at most 100,000",
    ),
    "layers without end": (
        ["--model=LightGCN", ML, "--n_layers=100000000"],
        "--n_layers=100000000; expected a whole number of at least 0 and at most 1,000",
    ),
    "a model that torch cannot build": (
        on_known_answer(model="ConvNCF", cnn_channels="[1]"),
        "ConvNCF refuses its settings: channels, kernels",
    ),
    "a convolution wider than its input": (
        on_known_answer(model="NNCF", pool_kernel_size=100),
        "--neigh_num=20 is too small for NNCF's conv_kernel_size=5",
    ),
    "neither half of NeuMF": (
        on_known_answer(model="NeuMF", mf_train="false", mlp_train="false"),
        "--mf_train and --mlp_train are both false",
    ),
    "a cutoff above the catalogue": (
        on_known_answer(teacher="BPR", distill="rkd", topk="[10,41]"),
        "--topk=41 exceeds the catalogue of 40 items",
    ),
    "clusters of a teacher above the catalogue": (
        on_known_answer(teacher="NCL", distill="rkd", **{"teacher.num_clusters": 41}),
        "--teacher.num_clusters=41 is more than the 40",
    ),
    "a column of ids that is not loaded": (
        on_known_answer(load_col="{inter: [user_id]}"),
        ": the column 'item_id' is not loaded. Check --load_col",
    ),
    "no columns": ([*BPR, "--load_col={inter: []}"], "--load_col={'inter': []}; expected columns"),
    "a split of nothing": ([*BPR, "--eval_args.split={RS: [0,0,0]}"], "--eval_args.split={'RS': [0, 0, 0]}; expected"),
    "fewer than no candidates": ([*BPR, "--eval_args.mode=uni-1"], "--eval_args.mode='uni-1'; expected full"),
    "ranking against nothing": ([*BPR, "--eval_args.mode=uni0"], "--eval_args.mode='uni0'; expected full"),
    "a threshold that is none": ([*BPR, "--threshold={rating: .nan}"], "--threshold.rating=nan; expected a number"),
    "a filter that is no interval": ([*BPR, "--user_inter_num_interval=50"], "='50'; expected an interval"),
    "values that are no interval": ([*BPR, "--val_interval={rating: '>=3'}"], "expected an interval or a list of ids"),
    "a NUL in a name": (["--model=BPR", "--dataset=ml\0"], "contains a NUL character"),
    "a pickled dataset": ([*BPR, "--save_dataset=True"], "--save_dataset is not supported"),
    "code": (["--model=BPR", ML, "--epochs=__import__('os').getcwd()"], "--epochs="),
    # Processes
    "no process": ([*BPR, "--nproc=0"], "--nproc=0"),
    "processes for a loop of its own": (["--model=EASE", ML, "--nproc=2"], "EASE has its own training loop"),
    "grace without a pruner": (["tune", *BPR, "--grace_epochs=2", "--prune=false"], "--prune=false it stops none"),
    "a process beyond the world": (
        [*BPR, "--nproc=2", "--world_size=3", "--group_offset=2"],
        "--world_size is set by the launcher only",
    ),
    "a port": ([*BPR, "--port=70000"], "--port is set by the launcher only"),
    "a rank": ([*BPR, "--local_rank=1"], "set --nproc=2 for two processes"),
    # What does not fit together
    "no teacher": (["--model=BPR", ML, "--distill=simrec"], "needs a teacher"),
    "two teachers at once": (
        ["--model=RRDStudent", ML, "--teacher=BPR", "--teacher.ranks=x.csv"],
        "both name the teacher; keep one",
    ),
    "vectors of a teacher without any": (
        on_known_answer(model="DEStudent", teacher="ItemKNN", **{"teacher.embedding_size": None}),
        "ItemKNN has none",
    ),
    "dimensions that differ": (
        on_known_answer(model="SimRecStudent", **{"teacher.embedding_size": 16, "teacher.epochs": 0}),
        "set --teacher.embedding_size=32",
    ),
    "more items than there are": (
        on_known_answer(model="RRDStudent", **{"teacher.epochs": 0}),
        "rrd.pool",
    ),
    "a resumed run of another model": (
        lambda data: [
            *quick(data, model="LightGCN"),
            with_checkpoint()(data)[0].replace("--checkpoint", "--resume"),
        ],
        "is a checkpoint of BPR, but --model=LightGCN",
    ),
    "a resumed run of another size": (
        lambda data: [
            *quick(data, model="BPR", embedding_size=9),
            with_checkpoint()(data)[0].replace("--checkpoint", "--resume"),
        ],
        "was trained with --embedding_size=64, and now it is 9",
    ),
    # Files
    "config file": (["--model=BPR", ML, "--config_files=none.yaml"], "Cannot read"),
    "a folder as config file": (["--model=BPR", ML, "--config_files=."], "Cannot read"),
    "yaml": (settings_file("a: [1"), "not plain YAML"),
    "yaml without names": (settings_file("- 1"), "holds no settings by name"),
    "a setting twice in yaml": (settings_file("epochs: 1\nepochs: 2"), "(line 2): 'epochs' is given twice; keep one"),
    "an option twice in yaml": (settings_file("eval_args:\n  order: RO\n  order: TO"), "(line 3): 'order' is given"),
    "an unknown key in yaml": (settings_file("lerning_rate: 1"), "Did you mean 'learning_rate'"),
    "teacher file": (
        ["--model=SimRecStudent", ML, "--teacher.checkpoint=none.pth"],
        "There is no checkpoint 'none.pth'",
    ),
    "resume": (["--model=BPR", ML, "--resume=none.pth"], "There is no checkpoint"),
    "resume a folder": ([*BPR, "--resume=."], "Cannot read the checkpoint"),
    "ranks that are not there": (on_known_answer(model="RRDStudent", **{"teacher.ranks": "none.csv"}), "none.csv"),
    "ranks without columns": (ranks("a,b\n1,2\n"), "lists.csv"),
    "ranks of strangers": (ranks("user_id,item_id\nnobody,i1\n"), "such as 'nobody'"),
    # Data
    "no file": (damaged(lambda path: path.unlink()), "There is no file"),
    "no header": (damaged(lines(lambda rows: rows[1:])), "expected columns as name:type"),
    "no column": (
        damaged(lines(lambda rows: [rows[0].replace("item_id", "item"), *rows[1:]])),
        "has no column 'item_id'; it has user_id, item. Set --USER_ID_FIELD",
    ),
    "an empty file": (damaged(lambda path: _write(path, "")), "expected columns as name:type"),
    "no rows": (damaged(lines(lambda rows: rows[:1])), "has a header but no interactions"),
    "binary": (damaged(lambda path: path.write_bytes(bytes(range(256)) * 4) and None), "Cannot read"),
    "another encoding": (
        damaged(lambda path: path.write_bytes(path.read_text().encode("utf-16")) and None),
        "line 1: it is not UTF-8; save the file as UTF-8, or set --encoding",
    ),
    "a folder for a file": (damaged(lambda path: (path.unlink(), path.mkdir())[1]), "There is no file"),
    "a dataset without a folder": (
        on_known_answer(benchmark_filename=None, dataset="alone"),
        "Unknown dataset",
    ),
    "a filter that leaves nothing": ([*BPR, "--user_inter_num_interval=[100000,inf)"], "check the filtering settings"),
    "a column that is not there": (on_known_answer(load_col="{inter: [user_id, item_id, when]}"), "no column 'when'"),
    # Verbs
    "evaluate nothing": (["evaluate"], "set --checkpoint=FILE"),
    "evaluate none": (["evaluate", "--checkpoint=none.pth"], "There is no checkpoint"),
    "evaluate on another dataset": (with_checkpoint("evaluate", dataset="ml-100k"), "leave --dataset out"),
    "evaluate another split": (another_split, "another split"),
    "evaluate a metric": (with_checkpoint("evaluate", metrics="[Recal]"), "Did you mean 'recall'"),
    "recommend nothing": (["recommend"], "--checkpoint"),
    "recommend to nobody": (with_checkpoint("recommend", users="nobody"), "None of the users"),
    "recommend too many": (with_checkpoint("recommend", users="u1", k=1000), "exceeds the catalogue"),
    "recommend none": (with_checkpoint("recommend", users="u1", k=0), "--k"),
    "recommend in a format": (with_checkpoint("recommend", users="u1", format="xml"), "--format"),
    "recommend after a split": (
        with_checkpoint("recommend", users="u1", seen="tset"),
        "--seen='tset' is not one of train",
    ),
    "export nothing": (["export"], "--checkpoint"),
    "export onto a file": (
        lambda data: [
            *with_checkpoint("export")(data),
            f"--output={data / 'known-answer' / 'known-answer.test.inter'}",
        ],
        "is a file",
    ),
    "export an index": (
        lambda data: [*with_checkpoint("export", index="fais")(data), f"--output={data / 'out'}"],
        "Did you mean 'faiss'",
    ),
    "prepare nothing": (["prepare"], "prepare needs a dataset"),
    "prepare unknown": (["prepare", "--dataset=gowala"], "Did you mean 'gowalla'"),
    "prepare key": (["prepare", "--dataset=gowalla", "--sorce=x"], "Did you mean 'source'"),
    "prepare none": (
        ["prepare", "--dataset=gowalla", "--minimum=0"],
        "--minimum=0; expected a whole number of at least 1",
    ),
    "prepare from nothing": (["prepare", "--dataset=gowalla", "--source=none.txt"], "does not exist"),
    "prepare from nobody": (["prepare", "--dataset=gowalla", "--source=~nobody-of-that-name"], "does not exist"),
    "prepare from an address": (["prepare", "--dataset=gowalla", "--source=ftp://x/y"], "is not read"),
    "list kind": (["list", "--kind=student"], "Did you mean 'students'"),
    "list one of nothing": (["list", "--name=rrd"], "set --kind to one of"),
    "completion of another shell": (["completion", "--shell=fish"], "--shell='fish' is not one of bash, zsh"),
    "serve nothing": (["serve"], "serve needs"),
    "serve key": (["serve", "--bundle=x", "--prot=80"], "Did you mean 'port'"),
    "serve what is no bundle": (["serve", "--bundle=none"], "holds no bundle"),
    "list key": (["list", "--knid=students"], "Did you mean 'kind'"),
    "the kind of a model": (
        [*BPR, "--MODEL_TYPE=x"],
        "--MODEL_TYPE follows from the model and cannot be set; leave it out",
    ),
    "a model's word": (["--model=SGL", ML, "--type=XX"], "--type='XX' is not one of ED, ND, RW"),
    "train key": ([*BPR, "--dryrun=true"], "'dryrun': nothing in this run reads it. Did you mean 'dry_run'"),
    "evaluate key": (with_checkpoint("evaluate", rseult_file="x"), "Did you mean 'result_file'"),
    "recommend key": (with_checkpoint("recommend", users="u1", fromat="csv"), "Did you mean 'format'"),
    "export key": (with_checkpoint("export", output="x", overwirte="true"), "Did you mean 'overwrite'"),
    "tune key": (["tune", *BPR, "--trails=3"], "Did you mean 'trials'"),
    "no setting at all": (["tune", *BPR, "--note=3"], "Unknown setting 'note': nothing in this run reads it"),
    "tune part": (["tune", *BPR, "--trials.x=3"], "--trials.x is part of --trials, which is one value; set that"),
    "compare key": (
        ["compare", ML, "--models=BPR", "--paralel=2"],
        "BPR: Unknown setting 'paralel': nothing in this run",
    ),
    "compare key, its name": (["compare", ML, "--models=BPR", "--paralel=2"], "Did you mean 'parallel'"),
    "tune without a space": (["tune", "--model=ItemKNN", ML], "no search space"),
    "tune over nothing": (space(""), "names no setting to search"),
    "tune in an unknown way": (space("learning_rate lguniform 1,2"), "loguniform"),
    "tune what is not searched": (space("seed choice [1,2]"), "searches 'seed'"),
    "tune without trials": (["tune", *BPR, "--trials=0"], "--trials=0"),
    "compare nothing": (["compare", ML], "--models"),
    "compare an unknown model": (["compare", ML, "--models=BRP"], "Did you mean 'BPR'"),
    "compare twice": (["compare", ML, "--models=BPR,BPR"], "more than once"),
    "compare a label twice": (
        settings_file("models:\n  one: {model: BPR}\n  one: {model: LightGCN}", "compare", ML),
        "(line 3): 'one' is given twice; keep one",
    ),
    "compare over no seeds": (["compare", ML, "--models=BPR", "--seeds=few"], "such as --seeds=[1,2]"),
    "compare over seeds": (["compare", ML, "--models=BPR", "--seeds=[1,1]"], "distinct seeds"),
    "report nothing": (["report"], "--results"),
    "report none": (["report", "--results=none.json"], "Cannot read 'none.json'"),
    "report no JSON": (results("{"), "is not valid JSON"),
    "report other JSON": (results(json.dumps([1])), "not results of compare"),
    "analyse nothing": (["analyse"], "--student"),
}


def _listing(data: Path) -> set[str]:
    """Files that a run could have left half-written: everything but logs, which tell what happened."""
    roots = (data, Path())
    logs = ("log", "log_tensorboard")
    files = {path for root in roots for path in root.rglob("*") if path.is_file() and path.parts[0] not in logs}
    return {os.path.realpath(path) for path in files}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_known_answer(tmp_path / "data")
    words, message = BAD[case]
    words = words(data) if callable(words) else words
    capsys.readouterr()
    before = _listing(data)
    assert main(words) == 2
    captured = capsys.readouterr()
    *warnings, line = [line for line in captured.err.splitlines() if line.startswith("recbole-kd:")]
    assert message in line
    assert all("skipped" in warning for warning in warnings)
    assert "Traceback" not in captured.err + captured.out
    whole = {path for path in _listing(data) - before if "/teachers/" not in path and not path.endswith(".arrow")}
    assert not whole, "nothing is half-written"


def test_the_table_has_what_users_get_wrong_in_every_verb() -> None:
    assert len(BAD) >= 80
    for verb in set(VERBS) - {"train"}:
        assert any(case.split()[0] == verb for case in BAD), verb


# Whatever is typed


_WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["--", "-", "--help", "-h", "train", "--epochs", "--epochs=1", "--=", "--a.b=[1", "--a={", "--a=&x *x"]
    ),
    st.builds(
        lambda key, value: f"--{key}={value}", st.text(string.ascii_letters + "._", max_size=8), st.text(max_size=20)
    ),
)


@given(st.lists(_WORDS, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_words_are_settings_or_a_user_error(words: list[str]) -> None:
    try:
        verb, found, help_wanted = parse(words)
    except UserError as error:
        assert str(error)
    else:
        assert verb in VERBS
        assert all(isinstance(key, str) and key for key in found)
        assert isinstance(help_wanted, bool)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_value_is_read_as_a_plain_one(text: str) -> None:
    _, found, _ = parse([f"--x={text}"])
    _assert_plain(found["x"])


def _assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, element in value.items():
            _assert_plain(key)
            _assert_plain(element)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for element in value:
            _assert_plain(element)
    else:
        import datetime

        plain = (str, bytes, int, float, complex, bool, type(None), type(...), datetime.date, datetime.datetime)
        assert type(value) in plain, type(value)


_FIELD = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\n"), max_size=6)
_ROW = st.lists(st.one_of(st.sampled_from(["u1", "u2", "i1", "i2", "1", "", "\0", '"', "nan"]), _FIELD), max_size=4)
_HEADERS = (
    "user_id:token\titem_id:token",
    "user_id:token\titem_id:token\trating:float",
    "item_id:token\tuser_id:token",
)


@given(
    header=st.one_of(st.sampled_from(_HEADERS), st.text(max_size=30)),
    rows=st.lists(_ROW, max_size=8),
    ending=st.sampled_from(["\n", "\r\n", ""]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_atomic_file_is_read_or_refused(
    header: str, rows: list[list[str]], ending: str, known_answer: Path
) -> None:
    text = ending.join([header, *("\t".join(row) for row in rows)])
    (known_answer / "known-answer" / "known-answer.train.inter").write_bytes(text.encode("utf-8", "surrogatepass"))
    config = KDConfig("BPR", "known-answer", config_dict=known_answer_settings(known_answer))
    try:
        splits = Splits(config)
    except UserError as error:
        assert str(error)
    else:
        assert len(splits.train) > 0
        assert splits.user_tokens[0] == "[PAD]"
