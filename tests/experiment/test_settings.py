"""Settings: layers of sources, sections, and what is refused."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from recbole.model.general_recommender import BPR

from recbole_kd import registry
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.experiment.values import nest
from recbole_kd.files.properties import load_yaml, parse_value
from recbole_kd.testing import known_answer_settings


def config(model: str = "SimRecStudent", **settings: Any) -> KDConfig:
    return KDConfig(model, "ml-100k", config_dict=settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("[10,20]", [10, 20]),
        ("10,20", [10, 20]),
        ("[Recall,NDCG]", ["Recall", "NDCG"]),
        ("{'split':{'RS':[8,1,1]}}", {"split": {"RS": [8, 1, 1]}}),
        ("None", None),
        ("~", None),
        ("null", None),
        (" [1,2]", [1, 2]),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("BPR", "BPR"),
        ("__import__('os').system('true')", "__import__('os').system('true')"),
        ("!!python/object/apply:os.system ['true']", "!!python/object/apply:os.system ['true']"),
        ("[!!python/name:os.system ]", "[!!python/name:os.system ]"),
        ("{[1]: 2}", "{[1]: 2}"),
        ("(" * 300, "(" * 300),
        ("-" * 100_000 + "1", "-" * 100_000 + "1"),
    ],
)
def test_values_are_literals_and_nothing_is_evaluated(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "{'a': 1, 'a': 2}", "[{a: {b: 1, b: 1}}]", "{'a': {'b': 1, 'b': 1}}"])
def test_a_value_names_nothing_twice(text: str) -> None:
    with pytest.raises(UserError, match="twice; keep one"):
        parse_value(text)


def test_what_a_merge_key_brings_in_is_given_anew() -> None:
    text = "a: &a {k: 1, l: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b, k: 3}"
    assert load_yaml(text)["c"] == {"k": 3, "l": 1}


def test_recboles_own_settings_are_known() -> None:
    given = config(eval_args={"mode": {"valid": "uni9", "test": "full"}}, **{"train_neg_sample_args.alpha": 0.5})
    assert given["eval_args"]["mode"] == {"valid": "uni9", "test": "full"}
    assert given["train_neg_sample_args"]["alpha"] == 0.5
    again = given.plain_values()
    named = {key: again[key] for key in ("eval_args", "train_neg_sample_args")}
    assert {key: config(**named)[key] for key in named} == named


def test_dotted_names_reach_into_sections() -> None:
    assert nest({"teacher.epochs": 3, "teacher": "LightGCN", "simrec.epsilon": 0.1, "distill": "a, b"}) == {
        "teacher": {"epochs": 3, "model": "LightGCN"},
        "simrec": {"epsilon": 0.1},
        "distill": ["a", "b"],
    }
    assert nest({"a.b.c": 1}) == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    "words",
    [
        {"teacher": "BPR,LightGCN", "teacher.0.epochs": 5, "teacher.epochs": 2},
        {"teacher": "BPR", "teacher.0.seed": 1, "teacher.1.seed": 2},
        {"val_interval.rating": "[4,inf)", "val_interval.timestamp": "[0,inf)"},
        {"clip_grad_norm.norm_type": 1, "clip_grad_norm.max_norm": 2},
        {"load_col.inter": ["user_id"], "load_col.item": ["item_id"]},
    ],
    ids=str,
)
def test_the_order_of_settings_does_not_matter(words: dict[str, Any]) -> None:
    """Rules between sources, such as that teacher.epochs in a later one overrides teacher.0.epochs, are not for one."""
    expected = nest(words)
    for order in itertools.permutations(words.items()):
        assert nest(dict(order)) == expected
    assert sum(isinstance(value, Mapping) for value in expected.values()) == 1
    (section,) = expected.values()
    given = {key.partition(".")[2].partition(".")[0] for key in words if "." in key}
    assert given <= set(section)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config_files": "b.yaml"}, "config_files is set inside a file or a dict, where nothing reads it"),
        ({"model": "BPR", "reg_weight": 10}, "Unknown setting 'reg_weight'"),
        ({"model": "SASRec", "mask_ratio": 0.5}, "Unknown setting 'mask_ratio'"),
        ({"model": "RRDStudent", "teacher.checkpoint": ""}, "--teacher.checkpoint=''; expected"),
        (
            {"model": "RRDStudent", "teacher.data_path": "/x"},
            "--teacher.data_path is set, but all models of a run share",
        ),
        ({"model": "RRDStudent", "teacher.split_seed": 1}, "--teacher.split_seed is set, but all models"),
        (
            {"model": "RRDStudent", "baseline": "DERRDStudent"},
            "--baseline=DERRDStudent is a recipe, which needs a teacher",
        ),
        (
            {"model": "BPR", "distill": "rrd", "teacher": "BPR,LightGCN", "teacher.checkpoint": "x.pth"},
            "both name the teacher; keep one",
        ),
        (
            {"learner": "sevo_adamw", "teacher": "LightGCN"},
            "Section 'teacher' is set but not used",  # the graph is not the teacher's
        ),
        (
            {"learner": "sevo_adamw", "sevo.category": "genre"},
            "--sevo.category is read by --sevo.graph=category alone, and the graph is consecutive",
        ),
        (
            {"model": "BERT4Rec", "every_position": True, "transform": "crop_itemseq", "eta": 0.5},
            "--transform=crop_itemseq: with --every_position=True BERT4Rec hides items by itself",
        ),
    ],
    ids=str,
)
def test_what_would_be_ignored_is_refused(settings: dict[str, Any], message: str) -> None:
    given = {"model": "BPR", **settings}
    with pytest.raises(UserError, match=message):
        Experiment.of(given.pop("model"), "ml-100k", given=given)


def test_a_seed_of_the_split_may_be_0() -> None:
    assert config(seed=5, split_seed=0).split_seed == 0
    assert config(seed=5).split_seed == 5


def test_a_baseline_stops_as_its_student_does() -> None:
    for baseline in ("student", "LightGCN"):
        experiment = Experiment.of("RRDStudent", "ml-100k", given={"stop_after": 2, "baseline": baseline})
        assert experiment.baseline is not None
        assert experiment.baseline["stop_after"] == 2


def test_another_model_beside_the_student_is_trained_and_evaluated_as_often() -> None:
    """It takes the given length of training, but no setting of the student's optimiser."""
    given = {"epochs": 9, "stopping_step": 4, "eval_step": 3, "stop_after": 6, "learning_rate": 0.25}
    baseline = config("RRDStudent", **given, baseline="LightGCN").baseline_config()
    alone = config("LightGCN")
    expected = {**given, "learning_rate": alone["learning_rate"]}
    assert {key: baseline[key] for key in given} == expected
    plain = config("RRDStudent", baseline="LightGCN").baseline_config()
    assert {key: plain[key] for key in given} == {key: alone[key] for key in given}


def test_another_model_beside_neumf_has_the_size_of_its_towers() -> None:
    given = {
        "distill": "rrd",
        "teacher": "BPR",
        "baseline": "LightGCN",
        "mf_embedding_size": 8,
        "mlp_embedding_size": 8,
    }
    assert config("NeuMF", **given).baseline_config()["embedding_size"] == 8


def test_a_graph_of_the_data_smooths_the_plain_student_too() -> None:
    given = {"learner": "sevo_adamw", "sevo.beta": 0.5}
    baseline = config("RRDStudent", **given).baseline_config()
    assert baseline.sevo is not None
    assert (baseline["learner"], baseline.sevo.beta) == ("sevo_adamw", 0.5)
    of_the_teacher = config("RRDStudent", **given, **{"sevo.graph": "teacher"}).baseline_config()
    assert (of_the_teacher["learner"], of_the_teacher.sevo) == ("adamw", None)


def test_the_share_of_a_transform_is_a_setting() -> None:
    assert config("SASRec", transform="mask_itemseq", mask_ratio=0.5)["mask_ratio"] == 0.5


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 1e-2\nsimrec: {epsilon: 0.4, triplets: 7}\nteacher: {epochs: 5}\n")
    found = KDConfig("SimRecStudent", "ml-100k", [str(file)], {"simrec.epsilon": 0.3, "teacher.n_layers": 4})
    assert found["learning_rate"] == 0.01
    assert found["simrec"]["epsilon"] == 0.3
    assert found["simrec"]["triplets"] == 7
    assert found["simrec"]["adaptive"] is True, "what nobody names keeps its default"
    teacher = found.teacher_config()
    assert (teacher["epochs"], teacher["n_layers"], teacher["model"]) == (5, 4, "SimRecTeacher")


def test_the_command_line_of_the_process_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--embedding_size=7", "--epochs=1", "--nonsense=1"])
    found = config()
    assert found["embedding_size"] == 32
    assert found.teacher_config()["embedding_size"] == 32


def test_the_students_settings_do_not_resize_the_teacher() -> None:
    given = config(
        embedding_size=8, learning_rate=0.5, epochs=2, train_batch_size=64, seed=3, topk=[5], valid_metric="NDCG@5"
    )
    teacher = given.teacher_config()
    plain = KDConfig("SimRecTeacher", "ml-100k")
    for key in ("embedding_size", "learning_rate", "epochs", "train_batch_size"):
        assert teacher[key] == plain[key], key
    assert (teacher["seed"], teacher["topk"], teacher["valid_metric"]) == (3, [5], "NDCG@5")


def test_who_takes_the_fused_adam() -> None:
    """Who distils does so in the trainer; its teacher and the plain student beside it do by their settings."""
    distils = config("RRDStudent")
    assert distils["fused_adam"] is None
    assert distils.teacher_config()["fused_adam"] is True
    assert distils.baseline_config()["fused_adam"] is True
    assert config("RRDStudent", fused_adam=False).baseline_config()["fused_adam"] is False
    assert config("RRDStudent", **{"teacher.fused_adam": False}).teacher_config()["fused_adam"] is False


def test_who_draws_fast() -> None:
    """Who distils does so by itself, as do its teacher and the plain student beside it; one flag decides for all."""

    def drawn(model: str, **settings: Any) -> list[bool]:
        run = Experiment.from_settings(config(model, **settings))
        plain = [*(source.settings for source in run.teachers), run.baseline]
        return [run.fast_sampling, *(bool(one["fast_sampling"]) for one in plain if one is not None)]

    assert drawn("RRDStudent", baseline="student") == [True, True, True]
    assert drawn("RRDStudent", baseline="student", fast_sampling=False) == [False, False, False]
    assert drawn("RRDStudent", **{"teacher.fast_sampling": False}, baseline="student") == [True, False, True]
    assert drawn("BPR") == [False]
    assert drawn("BPR", fast_sampling=True) == [True]
    assert drawn("RRDStudent", baseline="LightGCN") == [True, True, False], "another model trains as it would alone"
    assert drawn("RRDStudent", baseline="LightGCN", fast_sampling=True) == [True, True, True]
    assert drawn("RRDStudent", teacher="MultiVAE", baseline="none") == [True, False], "its loader is its own"
    assert drawn("KDStudent", **{"kd.weight": 0}) == [False], "which learns nothing then"


def test_the_baseline_is_of_the_students_size() -> None:
    baseline = config(embedding_size=8, epochs=2).baseline_config()
    assert (baseline["model"], baseline["embedding_size"], baseline["epochs"]) == ("BPR", 8, 2)
    assert baseline.distillers == []


@pytest.mark.parametrize(
    ("student", "baseline", "size"),
    [("GRU4Rec", "SASRec", "embedding_size"), ("SASRec", "GRU4Rec", "hidden_size"), ("SASRec", "STOSA", "hidden_size")],
)
def test_a_baseline_of_next_items_is_of_the_students_size(student: str, baseline: str, size: str) -> None:
    """Whatever the two architectures call it."""
    given = {"data_path": "elsewhere", "teacher": "SASRec", "distill": "kd", "baseline": baseline, size: 12}
    made = KDConfig(student, "no-dataset", config_dict=given).baseline_config()
    assert made["hidden_size" if size == "embedding_size" or baseline == "STOSA" else "embedding_size"] == 12


def test_a_models_file_has_presets_for_a_dataset(known_answer: Path) -> None:
    settings = {"data_path": "elsewhere"}
    plain = KDConfig("SimRecStudent", "gowalla", config_dict=settings)
    preset = KDConfig("SimRecStudent", "yelp-simrec", config_dict=settings)
    assert preset["benchmark_filename"] == ["train", "valid", "test"]
    assert preset["simrec"] != plain["simrec"]
    own = KDConfig("SimRecStudent", "yelp-simrec", config_dict={**settings, "simrec.prediction_weight": 9.0})
    assert own["simrec"]["prediction_weight"] == 9.0


def test_two_configurations_do_not_share_state(known_answer: Path) -> None:
    first = KDConfig("BPR", "known-answer", config_dict=known_answer_settings(known_answer))
    categories = {name: list(keys) for name, keys in first.parameters.items()}
    KDConfig("BPR", "ml-100k")
    assert first.parameters == categories


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"embeding_size": 8},
            "Unknown setting 'embeding_size': nothing in this run reads it. Did you mean 'embedding_size'?",
        ),
        ({"simrec.tripelts": 8}, "Unknown option 'simrec.tripelts'. Did you mean 'triplets'?"),
        ({"simrec.prediction_temperature": -1}, "simrec.prediction_temperature=-1 is out of range; expected above 0."),
        ({"simrec": 3}, "Section 'simrec' is 3"),
        ({"distill": "simrce"}, "Unknown distiller 'simrce'. Did you mean 'simrec'?"),
        ({"distill": 3}, "--distill=3 is not a list of distillers"),
        ({"distill": [], "simrec.epsilon": 0.1}, "Section 'simrec' is set but not used: --distill is empty"),
        ({"learning_rate": "fast"}, "--learning_rate='fast'; expected a number"),
        ({"learning_rate": -0.1}, "--learning_rate=-0.1; expected a number of at least"),
        ({"embedding_size": 0}, "--embedding_size=0; expected a whole number of at least 1"),
        ({"embedding_size": 2.5}, "--embedding_size=2.5; expected a whole number"),
        ({"epochs": -1}, "--epochs=-1; expected a whole number of at least 0"),
        ({"seed": -1}, "--seed=-1"),
        ({"topk": [0]}, "--topk=[0]"),
        ({"topk": "ten"}, "--topk='ten'"),
        ({"metrics": ["Recal"]}, "Unknown metric 'Recal' in --metrics. Did you mean 'recall'?"),
        ({"valid_metric": "NDCG@7"}, "--valid_metric=NDCG@7 is not computed"),
        (
            {"metrics": ["GAUC"], "valid_metric": "NDCG@10"},
            "--valid_metric=NDCG@10 is not computed: --metrics=['GAUC'], --topk=[10, 20, 40]; expected one of them, "
            "such as GAUC.",
        ),
        (
            {"metrics": ["Recall", "AUC"]},
            "--metrics has Recall, which reads a ranking, and AUC, which compares scores with labels; one run computes "
            "one kind: leave AUC out, or keep it alone with --eval_args.mode=labeled with --threshold=",
        ),
        (
            {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC"},
            "compares scores with labels, but --eval_args.mode=full ranks all items; set --eval_args.mode=labeled with "
            '--threshold="{rating: 4}", or --eval_args.mode=uni100',
        ),
        (
            {"metrics": "Recall", "valid_metric": "Recall@10", "eval_args.mode.valid": "labeled"},
            "needs a ranking, but --eval_args.mode=labeled scores only the rows of the split; set --eval_args.mode=full",
        ),
        (
            {"learning_rate_schedule": "cosin"},
            "learning_rate_schedule='cosin' is not one of constant, cosine. Did",
        ),
        ({"fused_adam": "yes"}, "--fused_adam='yes' is not true or false"),
        ({"shuffle": "perhaps"}, "--shuffle='perhaps' is not true or false; set --shuffle=true"),
        ({"eval_args": 3}, "Section 'eval_args' is 3; expected options by name"),
        ({"eval_args": {"mode": "partial"}}, "--eval_args.mode='partial'; expected full, labeled, uniN or popN"),
        (
            {"eval_args": {"mod": "full"}},
            "Unknown option 'eval_args.mod'. Did you mean 'mode'? Section 'eval_args' has",
        ),
        ({"eval_args": {"mode": {"tset": "full"}}}, "Unknown option 'eval_args.mode.tset'"),
        ({"train_neg_sample_args.sample_nun": 2}, "Did you mean 'sample_num'"),
        ({"save_dataset": True}, "--save_dataset is not supported: RecBole keeps datasets as pickles"),
        ({"student": "BPR"}, "--student=BPR changes the backbone of a recipe, but SimRecStudent is an architecture"),
        ({".x": 1}, "has an empty part"),
        ({"resume": ""}, "--resume=''; expected"),
        ({"warm_start_new": "teacher"}, "--warm_start_new=teacher is read with --warm_start=FILE alone"),
        ({"fold_in": 0.5}, "--fold_in=0.5 is read with --held_out_users alone"),
        ({"distill": [], "baseline": "LightGCN"}, "recbole-kd compare --models=SimRecStudent,LightGCN."),
        ({"distill": [], "teacher": "LightGCN"}, "Section 'teacher' is set but not used: --distill is empty"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        config(**settings)
    assert message in str(raised.value)


def test_a_wrong_setting_of_the_teacher_is_named_as_the_teachers() -> None:
    with pytest.raises(UserError, match=r"Unknown setting 'teacher.n_layer'.*Did you mean 'teacher.n_layers'"):
        config(**{"teacher.n_layer": 2}).teacher_config()
    with pytest.raises(UserError, match=r"Unknown model 'LihgtGCN'. Did you mean 'LightGCN'.*--teacher.model"):
        config(teacher="LihgtGCN").teacher_config()
    with pytest.raises(UserError, match=r"--teacher.epochs=-3; expected"):
        config(**{"teacher.epochs": -3}).teacher_config()
    with pytest.raises(UserError, match=r"Unknown setting 'teacher.shar'.*Did you mean 'teacher.share'"):
        config(**{"teacher.shar": 1}).teacher_config()


def test_a_teacher_is_no_recipe_and_does_not_distil() -> None:
    with pytest.raises(
        UserError, match=r"--teacher.model=RRDStudent is a recipe.*its backbone \(BPR\), or train it first"
    ):
        config(teacher="RRDStudent").teacher_config()
    with pytest.raises(UserError, match=r"--teacher.distill is set, but a teacher is trained without a teacher"):
        config(**{"teacher.distill": "kd"}).teacher_config()


@pytest.mark.parametrize("source", ["checkpoint", "ranks"])
def test_a_file_takes_the_place_of_a_recipes_teachers(source: str) -> None:
    best = KDConfig("BestStudent", "ml-100k", config_dict={f"teacher.{source}": "FILE"})
    (section,) = best.teacher_sections().values()
    assert section[source] == "FILE"
    assert section["model"] is None


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        ("SimRecStudnet", "ml-100k", "Unknown model 'SimRecStudnet'. Did you mean 'SimRecStudent'?"),
        (None, "ml-100k", "No model is given; set --model=NAME"),
        ("BPR", None, "No dataset is given; set --dataset=NAME"),
        ("BPR", "../etc", "--dataset=../etc is not a name"),
    ],
)
def test_model_and_dataset_are_needed(model: Any, dataset: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        KDConfig(model, dataset)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "not plain YAML (line 1)"),
        ("a: [1", "not plain YAML"),
        ("- 1", "holds no settings by name"),
    ],
)
def test_a_settings_file_is_plain_yaml(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        KDConfig("BPR", "ml-100k", [str(file)])
    assert message in str(raised.value)
    with pytest.raises(UserError, match="Cannot read the configuration file"):
        KDConfig("BPR", "ml-100k", [str(tmp_path / "none.yaml")])


def test_what_suits_a_student_is_a_file_of_its_own() -> None:
    settings = {"student": "NeuMF", "seed": 1}
    recipe = config("RRDStudent", **settings)
    assert recipe["mf_embedding_size"] == recipe["mlp_embedding_size"] == 20, "NeuMF's names for a recipe's 20"
    assert recipe.baseline_config()["mf_embedding_size"] == 20, "it stands beside a student of its size"
    assert config("RRDStudent", **settings, mf_embedding_size=8)["mf_embedding_size"] == 8
    assert config("NeuMF")["mf_embedding_size"] == 64, "RecBole's own, where no recipe is asked for"
    sequential = KDConfig("KDStudent", "amazon-beauty", config_dict={"student": "SASRec"}).baseline_config()
    assert "embedding_size" not in sequential.external_config_dict, "what the recipe calls a size, SASRec does not read"
    assert sequential["hidden_size"] == 16


class Foreign(BPR):
    """A model of somebody else's package: what it reads is listed nowhere."""


def test_the_plain_model_of_somebody_elses_package_keeps_the_recipes_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {"recbole_kd.models": {"Foreign": f"{__name__}:Foreign"}}
    monkeypatch.setattr(registry, "_offered", lambda group: offered.get(group, {}))
    assert config("KDStudent", student="Foreign").baseline_config()["embedding_size"] == 20


def test_rates_chosen_for_one_student_are_not_anothers() -> None:
    of = {
        student: KDConfig("RRDStudent", "citeulike", config_dict={"student": student})
        for student in ("BPR", "LightGCN", "ENMF")
    }
    assert (of["BPR"]["learning_rate"], of["BPR"]["weight_decay"], of["BPR"]["epochs"]) == (2e-2, 3e-6, 200)
    assert (of["LightGCN"]["learning_rate"], of["LightGCN"]["weight_decay"]) == (2e-2, 0.0)
    assert of["ENMF"]["learning_rate"] != 2e-2
    assert of["BPR"]["rrd"] == of["ENMF"]["rrd"], "the recipe's own choice for the dataset holds for all"
    cosines = KDConfig("RRDStudent", "citeulike", config_dict={"student": "SimpleX"})
    assert cosines["rrd"]["temperature"] == 0.1
    assert cosines["rrd"]["weight"] != of["BPR"]["rrd"]["weight"], "but for what a student's file says of the dataset"
    other = KDConfig("KDStudent", "citeulike", config_dict={"student": "SimpleX"})
    assert other["rrd"] is None, "what suits a student for another distiller is no setting of this run"


def teachers(model: str, dataset: str = "citeulike", **settings: Any) -> list[KDConfig]:
    run = KDConfig(model, dataset, config_dict=settings)
    return [run.teacher_config(section, prefix) for prefix, section in run.teacher_sections().items()]


def test_a_recipe_takes_a_students_sizes_not_what_distils_it_by_itself() -> None:
    """SimRecStudent alone is compared with BPR and learns from SimRecTeacher."""
    alone, of_recipe = (
        KDConfig("SimRecStudent", "ml-100k"),
        KDConfig("RRDStudent", "ml-100k", config_dict={"student": "SimRecStudent"}),
    )
    assert (alone["baseline"], alone["teacher"]["model"]) == ("BPR", "SimRecTeacher")
    assert (of_recipe["baseline"], of_recipe["teacher"]["model"]) == ("student", "BPR")
    assert of_recipe["negative_slope"] == alone["negative_slope"]


def test_what_suits_a_recipes_teacher_is_a_file_of_its_own() -> None:
    (own,) = teachers("RRDStudent")
    assert (own["model"], own["embedding_size"], own["learning_rate"], own["epochs"]) == ("BPR", 400, 2e-3, 60)
    (other,) = teachers("RRDStudent", teacher="LightGCN")
    assert (other["model"], other["embedding_size"], other["learning_rate"]) == ("LightGCN", 400, 5e-3)
    graph, neighbours = teachers("BestStudent")
    assert (graph["learning_rate"], neighbours["learning_rate"]) == (5e-3, 1e-3), "each has what suits its model"


def test_a_teachers_own_settings_go_before_what_suits_it() -> None:
    (given,) = teachers("RRDStudent", **{"teacher.embedding_size": 32})
    assert (given["embedding_size"], given["learning_rate"]) == (32, 2e-3)
    graph, _ = teachers("BestStudent", **{"teacher.epochs": 3})
    assert (graph["epochs"], graph["learning_rate"]) == (3, 5e-3)
    (plain,) = teachers("BPR", distill=["rrd"], teacher="BPR")
    assert (plain["embedding_size"], plain["epochs"]) == (64, 300), "RecBole's own, where no recipe is asked for"


def test_a_runs_own_settings_tell_the_whole_teacher() -> None:
    """Digests, kept results and a search's folder are made of them."""
    assert KDConfig("KDStudent", "citeulike").plain_values()["teacher"]["embedding_size"] == 400
    numbered = KDConfig("BestStudent", "citeulike", config_dict={"teacher.epochs": 3}).plain_values()["teacher"]
    assert numbered["epochs"] == 3
    assert "epochs" not in numbered["0"], "what is said for all is not said again for one"
    assert numbered["0"]["embedding_size"] == 400
    read = KDConfig("KDStudent", "citeulike", config_dict={"teacher.checkpoint": "saved/some.pth"})
    assert "embedding_size" not in read["teacher"], "a file has the sizes that it has"


def test_a_students_file_may_name_its_teacher() -> None:
    (teacher,) = teachers("KDStudent", "amazon-beauty", student="SASRec")
    assert (teacher["model"], teacher["hidden_size"]) == ("SASRec", 64)
    (given,) = teachers("KDStudent", "amazon-beauty", student="SASRec", teacher="GRU4Rec")
    assert given["model"] == "GRU4Rec"


def test_a_whole_number_is_read_as_its_default_is_written() -> None:
    given = config("BPR", weight_decay=0, epochs=3.0, distill=["rrd"], **{"rrd.weight": 1})
    values = [given["weight_decay"], given["epochs"], given["rrd"]["weight"]]
    assert values == [0, 3, 1]
    assert [type(value) for value in values] == [float, int, float], "one setting, one digest"
    with pytest.raises(UserError, match="weight_decay"):
        config("BPR", weight_decay=-(10**400))


def test_the_plain_student_has_the_optimiser_of_the_one_it_stands_beside() -> None:
    assert config("KDStudent").baseline_config()["fused_adam"] is True
    assert config("KDStudent", **{"kd.weight": 0}).baseline_config()["fused_adam"] is False, "which learns nothing then"


def test_a_gpu_in_a_file_may_be_another_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for nothing, here and in what is made of these settings (a search's trials); as an argument it does."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "other.yaml"
    file.write_text("use_gpu: true\n")
    config = KDConfig("BPR", "ml-100k", [str(file)])
    assert config["device"].type == "cpu"
    KDConfig("BPR", "ml-100k", config_dict=config.external_config_dict)
    with pytest.raises(UserError, match="--use_gpu=true asks for a GPU"):
        KDConfig("BPR", "ml-100k", config_dict={"use_gpu": True})


def test_a_transform_keeps_its_share_in_the_baseline_and_in_a_checkpoint() -> None:
    given = {"transform": "crop_itemseq", "eta": 0.5, "train_neg_sample_args": None}
    config = KDConfig("SASRec", "ml-100k", config_dict=given)
    assert config.baseline_config()["eta"] == 0.5
    assert config.checkpoint_config("SASRec", config.plain_values())["eta"] == 0.5
