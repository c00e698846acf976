"""The table of settings: held against RecBole's sources and files, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import recbole
from recbole.evaluator import metric_types
from recbole.utils import dataset_arguments, evaluation_arguments, general_arguments, training_arguments

from recbole_kd.errors import UserError
from recbole_kd.experiment.checks import WEIGHT_FILES, _keys_read_by_recbole
from recbole_kd.experiment.known_keys import GROUPS, OMITTED, WITHOUT_CUTOFF, check, hint_of, known_keys, of_a_model
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.experiment.values import merge
from recbole_kd.files.properties import PROPERTIES, overall_properties, read_yaml
from recbole_kd.options import is_text
from recbole_kd.registry import MODELS, recipes

KNOWN = {name for group in GROUPS for name in group.__dataclass_fields__}
LEFT_OUT = [name for names in OMITTED.values() for name in names]
RECBOLE = Path(recbole.__file__).parent / "properties"


# Held against RecBole


def test_every_setting_that_recbole_reads_is_known_or_left_out_with_a_reason() -> None:
    assert _keys_read_by_recbole() - KNOWN - set(LEFT_OUT) == set()


def test_what_is_left_out_is_read_by_recbole_and_in_no_table() -> None:
    assert len(LEFT_OUT) == len(set(LEFT_OUT))
    assert set(LEFT_OUT) <= _keys_read_by_recbole() | {"valid_metric_bigger"}
    assert not set(LEFT_OUT) & KNOWN


def test_recboles_lists_of_arguments_are_known() -> None:
    of_knowledge_graphs = {"alias_of_entity_id", "alias_of_relation_id"}
    listed = {*general_arguments, *training_arguments, *evaluation_arguments, *dataset_arguments}
    assert listed - KNOWN - set(LEFT_OUT) - of_knowledge_graphs == {"config_file"}


def test_our_own_settings_are_known() -> None:
    assert set(overall_properties()) <= KNOWN


def test_defaults_are_recboles_and_ours() -> None:
    written = merge(read_yaml(RECBOLE / "overall.yaml"), read_yaml(RECBOLE / "dataset" / "sample.yaml"))
    written = merge(written, overall_properties())
    compared = 0
    for group in GROUPS:
        for name, field in group.__dataclass_fields__.items():
            default = field.metadata["default"]
            if name in written and default is not None:
                shown = list(default) if isinstance(default, tuple) else default
                assert shown == written[name], name
                compared += 1
    assert compared >= 50


def test_metrics_without_a_cutoff_are_recboles() -> None:
    assert set(WITHOUT_CUTOFF) <= set(metric_types)
    assert {name for name, kind in metric_types.items() if kind.name == "VALUE"} <= set(WITHOUT_CUTOFF)


@pytest.mark.parametrize(
    "file", [*RECBOLE.glob("model/*.yaml"), *PROPERTIES.glob("[mst]*/*.yaml")], ids=lambda f: f.stem
)
def test_every_properties_file_passes(file: Path) -> None:
    """RecBole's for the models that are offered, and ours: what they hold is of the type and range that the table says."""
    if file.stem not in {*MODELS, *recipes()}:
        pytest.skip("not offered")
    settings = read_yaml(file)
    for case in [settings, *settings.pop("for_dataset", {}).values()]:
        check(case, case)


def test_every_word_of_a_model_is_one_of_several() -> None:
    """RecBole compares such a word late, or takes any other for the last one."""
    found = 0
    for model in MODELS:
        file = RECBOLE / "model" / f"{model}.yaml"
        for key, default in (read_yaml(file) if file.is_file() else {}).items():
            if isinstance(default, str) and key not in {*KNOWN, *WEIGHT_FILES}:
                bounded = of_a_model(key, {key: default})
                assert bounded, (model, key)
                found += default in bounded[1]["choices"]
    assert found > 20


@pytest.mark.parametrize(
    ("key", "default", "value"),
    [("loss_type", "CE", "MSE"), ("loss_type", "BCE", "CE"), ("type", "ED", "x"), ("mlp_act_func", "tanh", 7)],
)
def test_a_word_that_is_none_of_them_is_refused(key: str, default: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{key}={value!r} is not one of"):
        check({key: value}, {key: default})


def test_every_setting_is_explained() -> None:
    for title, options in known_keys():
        assert title
        assert all(one.help and (one.default or one.metavar) for one in options)


def test_which_settings_are_text() -> None:
    """A dataset may be called 2020; an interval is no list."""
    for key in ("dataset", "model", "teacher", "teacher.checkpoint", "teacher.0.ranks", "user_inter_num_interval"):
        assert is_text(hint_of(key)), key
    for key in ("epochs", "teacher.epochs", "topk", "gpu_id", "metrics", "rrd.weight"):
        assert not is_text(hint_of(key)), key


# What is refused


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "", "--seed=''; expected a whole number of at least 0 and at most 4,294,967,295"),
        ("learning_rate", 1e300, "--learning_rate=1e+300; expected a number of at least 1e-12 and at most 1e+38"),
        ("train_batch_size", 1e18, "--train_batch_size=1e+18; expected a whole number of at least 1 and at most"),
        ("metrics", [], "--metrics=[]; expected a word or a list of names"),
        ("valid_metric", "NDCG@", "--valid_metric='NDCG@'; expected a metric and a cutoff, such as NDCG@20"),
        ("valid_metric", "NDCG", "expected a metric and a cutoff"),
        ("valid_metric", "NDCG@0", "expected a metric and a cutoff"),
        ("topk", [], "--topk=[]; expected whole numbers above 0"),
        ("worker", 100000, "--worker=100000; expected a whole number of at least 0 and at most 256"),
        ("loss_decimal_place", 1e9, "expected a whole number of at least 0 and at most 16"),
        ("clip_grad_norm", {"foo": 1}, "Unknown option 'clip_grad_norm.foo'"),
        ("clip_grad_norm", {}, "clip_grad_norm needs a largest norm; set --clip_grad_norm.max_norm=X"),
        ("train_neg_sample_args", {"sample_num": -1}, "--train_neg_sample_args.sample_num=-1; expected a whole number"),
        ("train_neg_sample_args", {"dynamic": True}, "--train_neg_sample_args.candidate_num=0, but dynamic is true"),
        ("state", 5, "--state=5 is not one of DEBUG, INFO"),
        ("state", "lout", "--state='lout' is not one of DEBUG, INFO"),
        ("encoding", "x", "--encoding='x'; expected an encoding, such as utf-8"),
        ("transform", "x", "--transform='x' is not one of mask_itemseq"),
        ("USER_ID_FIELD", ["a"], "--USER_ID_FIELD=['a'] is not a name"),
        ("NEG_PREFIX", "", "--NEG_PREFIX=''; expected a name"),
        ("benchmark_filename", 5, "--benchmark_filename=5 is not a list"),
        ("benchmark_filename", ["a", "b"], "expected names of three files"),
        ("benchmark_filename", ["train"] * 3, "the first different from the others"),
        ("load_col", {"inter": []}, "expected columns of each file"),
        ("load_col", {"inter": "user_id"}, "expected columns of each file"),
        (
            "eval_args",
            {"split": {"RS": [0, 0, 0]}},
            "--eval_args.split={'RS': [0, 0, 0]}; expected {RS: [0.8,0.1,0.1]}",
        ),
        ("eval_args", {"split": {"RS": [0.8, 0.2]}}, "--eval_args.split"),
        ("eval_args", {"split": {"LS": "last"}}, "--eval_args.split"),
        ("eval_args", {"mode": "uni-1"}, "--eval_args.mode='uni-1'; expected full, labeled, uniN or popN"),
        (
            "eval_args",
            {"mode": {"valid": "uni0"}},
            "--eval_args.mode.valid='uni0'; expected full, labeled, uniN or popN",
        ),
        ("eval_args", {"order": "OT"}, "--eval_args.order='OT' is not one of RO, TO"),
        ("threshold", {"rating": math.nan}, "--threshold.rating=nan; expected a number"),
        ("user_inter_num_interval", 50, "--user_inter_num_interval=50 is not an interval, such as [5,inf)"),
        ("user_inter_num_interval", "50", "--user_inter_num_interval='50'; expected an interval, such as [5,inf)"),
        ("item_inter_num_interval", "[5,2]", "expected an interval"),
        ("val_interval", {"rating": ">=3"}, "expected an interval or a list of ids for each column"),
        ("data_path", "a\0b", "--data_path='a\\x00b' is not a word"),
        ("embedding_size", 2.5, "--embedding_size=2.5; expected a whole number of at least 1"),
        ("attn_dropout_prob", 2, "--attn_dropout_prob=2; expected a number of at least 0 and at most 1"),
        ("teacher", {"share": 0}, "--teacher.share=0; expected a number above 0"),
        ("teacher", {"0": {"share": -1}}, "--teacher.0.share=-1; expected a number above 0"),
        ("teacher", {"1": {"fusion": "scores"}}, "--teacher.1.fusion is set, but there is one fusion for all teachers"),
        ("teacher", {"allow_other_split": "yes"}, "--teacher.allow_other_split='yes' is not true or false"),
        ("mlp_hidden_size", 3, "--mlp_hidden_size=3 has another type than its default [128, 64]"),
    ],
)
def test_a_value_without_meaning_is_named(key: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        check({key: value}, {"mlp_hidden_size": [128, 64]})
    assert expected in str(raised.value)


def test_a_teachers_setting_has_its_prefix() -> None:
    with pytest.raises(UserError, match=r"^--teacher\.eval_args\.order=1 is not one of RO, TO"):
        check({"eval_args": {"order": 1}}, {}, "teacher.")
    with pytest.raises(UserError, match=r"^Unknown option 'teacher\.eval_args\.oder'"):
        check({"eval_args": {"oder": 1}}, {}, "teacher.")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("valid_metric", "ndcg@5"),
        ("valid_metric", "AUC"),
        ("topk", 5),
        ("metrics", "Recall"),
        ("gpu_id", 0),
        ("gpu_id", (0, 1)),
        ("state", "warning"),
        ("eval_args", {"split": {"LS": "valid_and_test"}, "group_by": None, "mode": {"valid": "pop50"}}),
        ("user_inter_num_interval", "[5, inf)"),
        ("user_inter_num_interval", "[0,3);(7.5,9]"),
        ("val_interval", {"rating": "[3,inf)", "genre": ["comedy"]}),
        ("load_col", None),
        ("load_col", {"inter": ["user_id"], "item": "*"}),
        ("benchmark_filename", ["train", "test", "test"]),
        ("clip_grad_norm", {"max_norm": 1}),
        ("reg_weight", [0.1, 0.1]),
        ("embedding_size", None),
    ],
)
def test_a_value_with_a_meaning_passes(key: str, value: Any) -> None:
    check({key: value}, {})


def test_a_configuration_is_checked_by_the_table() -> None:
    """... with the rest of a section that was given in part."""
    with pytest.raises(UserError, match=r"candidate_num=0, but dynamic is true"):
        KDConfig("BPR", "ml-100k", config_dict={"train_neg_sample_args.dynamic": True})
    with pytest.raises(UserError, match=r"^--teacher\.worker=1000; expected"):
        KDConfig("RRDStudent", "ml-100k", config_dict={"teacher.worker": 1000}).teacher_config()


@pytest.mark.parametrize(
    ("model", "key", "value", "expected"),
    [
        ("NextItNet", "dilations", [1, 0], "--dilations=0; expected a whole number of at least 1"),
        ("NextItNet", "dilations", [1, "x"], r"--dilations=\[1, 'x'\] has another type than its default \[1, 4\]"),
        ("NextItNet", "kernel_size", 0, "expected a whole number of at least 1"),
        ("NARM", "dropout_probs", [0.5, 2], "--dropout_probs=2; expected a number of at least 0 and at most 1"),
        ("RecVAE", "mixture_weights", ["x"], "has another type than its default"),
        ("NGCF", "hidden_size_list", 64, "has another type than its default"),
        ("LightSANs", "k_interests", -3, "expected a whole number of at least 1"),
        ("LINE", "order", 3, "expected a whole number of at least 1 and at most 2"),
        ("AsymKNN", "q", 0, "expected a whole number of at least 1"),
        ("LDiffRec", "anneal_steps", -1, "expected a whole number of at least 0"),
        ("SGL", "drop_ratio", 1, "expected a number of at least 0 and below 1"),
        ("GCMC", "num_basis_functions", 10**8, "at most 1,000"),
    ],
)
def test_a_models_own_numbers_have_bounds(model: str, key: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        KDConfig(model, "ml-100k", config_dict={key: value})


def test_every_whole_number_of_a_model_has_bounds() -> None:
    for model in MODELS:
        file = RECBOLE / "model" / f"{model}.yaml"
        defaults = read_yaml(file) if file.is_file() else {}
        for key, default in defaults.items():
            numbers = default if isinstance(default, list) else [default]
            if key not in KNOWN and numbers and all(type(number) is int for number in numbers):
                assert of_a_model(key, defaults), (model, key)


def test_a_transformer_has_a_layer_and_a_graph_model_may_have_none() -> None:
    KDConfig("LightGCN", "ml-100k", config_dict={"n_layers": 0})
    for model in ("SASRec", "BERT4Rec", "STOSA"):
        with pytest.raises(UserError, match="--n_layers=0; expected a whole number of at least 1"):
            KDConfig(model, "ml-100k", config_dict={"n_layers": 0})
    with pytest.raises(UserError, match="--teacher.n_layers=0; expected a whole number of at least 1"):
        KDConfig(
            "SASRec", "ml-100k", config_dict={"teacher": "SASRec", "distill": "htd", "teacher.n_layers": 0}
        ).teacher_config()
