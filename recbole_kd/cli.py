"""The command line: ``recbole-kd [VERB] --key=value ...``. The only place that reads sys.argv."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from recbole_kd.errors import Interrupted, TrainingError, UserError, closest

USAGE = """\
recbole-kd: knowledge distillation for recommender systems, on RecBole.

  recbole-kd [VERB] --key=value ...        (or: python run_recbole_kd.py [VERB] --key=value ...)

An experiment is three words:

  --model=WHO LEARNS    a recipe (SimRecStudent) or any RecBole recommender (BPR, LightGCN, NeuMF, ...)
  --teacher=WHO TEACHES another recommender, trained first and kept; --teacher.checkpoint=FILE gives a trained one
  --distill=HOW         distillers, such as simrec; a recipe is a preset of all three

Verbs:
{verbs}

Settings: every RecBole key works (--epochs=50 --learning_rate=1e-3 --topk=[10,20]), in YAML files too
(--config_files="a.yaml b.yaml"). Dots reach into sections: --teacher.embedding_size=64 --simrec.prediction_weight=1.
Later sources win: RecBole's defaults, properties/, YAML files, the command line. `--key value` is accepted as well.

Examples:
  recbole-kd --model=SimRecStudent --dataset=ml-100k
  recbole-kd --model=SimRecStudent --dataset=yelp-simrec --data_path=DIR --teacher=LightGCN --teacher.n_layers=3
  recbole-kd list
  recbole-kd prepare --dataset=gowalla
  recbole-kd evaluate --checkpoint=saved/FILE.pth --topk=[5,10]

Exit codes: 0 done, 2 something to mend (one line on what), 130 interrupted.
"""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: the words after the program's name; sys.argv where None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        verb, settings, help_wanted = parse(words)
        if help_wanted:
            print(usage(verb))
            return 0
        VERBS[verb].run(settings)
    except (UserError, TrainingError) as error:
        print(f"recbole-kd: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        # The line that a progress bar or the terminal's ^C stands on ends first.
        print(f"\nrecbole-kd: {_how_to_go_on(words, stop)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is wrong and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        detail = re.search(r"\d+ bytes|[\d.]+ [GMT]iB", str(error))
        print(
            f"recbole-kd: not enough memory{f' for {detail[0]}' if detail else ''}; lower what a model or step holds, "
            "such as --train_batch_size, --embedding_size, or a distiller's experts, pool or nodes.",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        print(f"recbole-kd: {error.strerror or error}{where}; see --checkpoint_dir and --data_path.", file=sys.stderr)
        return 2
    return 0


def _how_to_go_on(words: Sequence[str], stop: KeyboardInterrupt) -> str:
    """What to say of an interrupt: the command that goes on. Repeated, a command finds what it kept, a teacher say."""
    words = list(words)
    if isinstance(stop, Interrupted):
        while (old := _place_of(words, "resume")) is not None:
            del words[old]
        words.append(f"--resume={stop.resume}")
    elif stop.args:
        return str(stop)
    return f"interrupted. To go on: recbole-kd {shlex.join(words)}"


def _place_of(words: Sequence[str], key: str) -> Optional[slice]:
    """Where `words` have this setting, as one word or as two."""
    for place, word in enumerate(words):
        if word == f"--{key}":
            return slice(place, place + 2)
        if word.startswith(f"--{key}="):
            return slice(place, place + 1)
    return None


def _one_line(error: Exception) -> str:
    """A message as one line that a terminal shows: what it quotes of a file may hold anything."""
    text = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any], bool]:
    """(verb, settings by dotted name, whether help is wanted) of the words on the command line.

    Raises:
        UserError: an unknown verb, a word that is no setting, or one setting with two values.
    """
    words = list(words)
    verb = "train"
    if words and not words[0].startswith("-"):
        verb = words.pop(0)
        if verb not in VERBS:
            raise UserError(f"Unknown verb '{verb}'.{closest(verb, VERBS)} Verbs: {', '.join(VERBS)}.")
    settings: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            return verb, {}, True
        if not word.startswith("--") or word == "--":
            raise UserError(f"'{word}' is no setting; expected --key=value, such as --dataset=ml-100k.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{key} has no value; expected --{key}=VALUE.")
            text = words.pop(0)
        if not key:
            raise UserError(f"'{word}' has no name before the '='; expected --key=value.")
        from recbole_kd.experiment.values import parse_value  # brings torch and RecBole, for which help need not wait

        # These are names, whatever they look like: a dataset may be called 2020.
        value = text if re.sub(r"^teacher\.\d+\.", "teacher.", key) in _TEXTS else parse_value(text)
        if key in settings and settings[key] != value:
            raise UserError(f"--{key} is given twice, as {settings[key]!r} and {value!r}; keep one.")
        settings[key] = value
    return verb, settings, False


_TEXTS = {
    *("model", "dataset", "teacher", "teacher.model", "student", "baseline"),
    *("config_files", "data_path", "checkpoint_dir", "result_file", "source", "results", "output"),
    *("checkpoint", "teacher.checkpoint", "teacher.ranks", "resume"),
    *("params_file", "ray_address"),
    *("users", "format", "output", "index"),
}


def usage(verb: str = "train") -> str:
    """The help text; for a verb other than train, that verb's."""
    verbs = "\n".join(f"  {name:<10} {entry.summary}" for name, entry in VERBS.items())
    if verb != "train":
        return f"recbole-kd {verb} --key=value ...\n\n{VERBS[verb].summary}\n\n{VERBS[verb].details}"
    return USAGE.format(verbs=verbs)


def _train(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.train import dry_run, run_recbole_kd, table

    files = str(settings.pop("config_files", "") or "").split()
    dry = settings.pop("dry_run", False)
    if not isinstance(dry, bool):
        raise UserError(f"--dry_run={dry!r}; expected true or false.")
    if dry:
        print(dry_run(files, settings), end="")
        return
    result = run_recbole_kd(config_file_list=files, config_dict=settings)
    if not result:
        return  # the first of several machines tells
    print(f"\n{result['dataset']}, test split, epoch {result['best_epoch']} chosen on validation\n{table(result)}")
    print(f"\nresult and checkpoint: {os.path.splitext(result['checkpoint'] or '')[0]}.{{json,pth}}")


def _list(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.list import listing

    kinds = ("students", "teachers", "distillers", "recipes", "datasets")
    kind = settings.pop("kind", None)
    data_path = str(settings.pop("data_path", "dataset/"))
    _no_more(settings, "list", ("kind", "data_path"))
    if kind is not None and kind not in kinds:
        raise UserError(f"Unknown kind '{kind}'.{closest(str(kind), kinds)} Set --kind to one of {', '.join(kinds)}.")
    print(listing([kind] if kind else list(kinds), data_path))


def _evaluate(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.evaluate import evaluate_checkpoint

    checkpoint = settings.pop("checkpoint", None)
    result_file = settings.pop("result_file", None)
    if not checkpoint:
        raise UserError("evaluate needs a checkpoint; set --checkpoint=FILE, such as saved/BPR-ml-100k-....pth.")
    result = evaluate_checkpoint(str(checkpoint), settings)
    if result_file:
        from recbole_kd.files.plain import save_json

        save_json(result, str(result_file), "result_file")
    print(json.dumps(result, indent=2))


def _recommend(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.recommend import run_recommend

    keys = ("checkpoint", "users", "k", "format", "output", "seen", "exclude_seen")
    given = {key: settings.pop(key) for key in keys if key in settings}
    if "checkpoint" not in given:
        raise UserError("recommend needs a checkpoint; set --checkpoint=FILE, such as saved/BPR-ml-100k-....pth.")
    if "users" not in given:
        raise UserError("recommend needs users; set --users=ID,ID,..., --users=@FILE or --users=all.")
    run_recommend(**given, config_dict=settings)


def _export(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.export import run_export, summary

    keys = ("checkpoint", "output", "index", "seen", "overwrite")
    given = {key: settings.pop(key) for key in keys if key in settings}
    if "checkpoint" not in given:
        raise UserError("export needs a checkpoint; set --checkpoint=FILE, such as saved/BPR-ml-100k-....pth.")
    if "output" not in given:
        raise UserError("export needs a folder; set --output=DIR.")
    print(summary(run_export(**given, config_dict=settings), given["output"]))


def _prepare(settings: dict[str, Any]) -> None:
    from recbole_kd.data.prepare import PREPARABLE, can_prepare, prepare

    dataset = settings.pop("dataset", None)
    data_path, source = settings.pop("data_path", "dataset/"), settings.pop("source", None)
    minimum = settings.pop("minimum", 10)
    _no_more(settings, "prepare", ("dataset", "data_path", "source", "minimum"))
    if dataset is None:
        raise UserError(f"prepare needs a dataset; set --dataset to one of {', '.join(PREPARABLE)}.")
    if not can_prepare(dataset):
        raise UserError(
            f"'{dataset}' cannot be prepared.{closest(str(dataset), PREPARABLE)} "
            f"Set --dataset to one of {', '.join(PREPARABLE)}."
        )
    print(prepare(dataset, data_path, source=source, minimum=minimum))


def _analyse(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.analyse import run_analyse

    run_analyse(settings)


def _report(settings: dict[str, Any]) -> None:
    from recbole_kd.report import read_results, write_report

    results, output = settings.pop("results", None), settings.pop("output", None)
    _no_more(settings, "report", ("results", "output"))
    if not results:
        raise UserError("report needs the results of compare; set --results=DIR/results.json.")
    for path in write_report(read_results(results), output or os.path.dirname(results) or "."):
        print(path)


_SEARCH = ("trials", "prune", "grace_epochs", "cpus", "cpus_per_trial", "gpus_per_trial", "ray_address")


def _tune(settings: dict[str, Any]) -> None:
    from recbole_kd.files.plain import save_json
    from recbole_kd.verbs.tune import evaluate_winner, search
    from recbole_kd.verbs.tune.report import summary

    files = str(settings.pop("config_files", "") or "").split()
    own = {key: settings.pop(key) for key in _SEARCH if key in settings}
    space, folder, result_file = (settings.pop(key, None) for key in ("params_file", "output", "result_file"))
    result = search(config_file_list=files, config_dict=settings, space=space, folder=folder, **own)
    result["test_result"] = evaluate_winner(result, files, settings)
    for path in (os.path.join(result["folder"], "result.json"), result_file):
        if path:
            save_json(result, path, "result_file" if path == result_file else "output")
    print(f"\n{summary(result)}")


def _no_more(settings: dict[str, Any], verb: str, known: Sequence[str]) -> None:
    if settings:
        key = next(iter(settings))
        takes = ", ".join(f"--{name}" for name in known)
        raise UserError(f"Unknown setting '{key}' for {verb}.{closest(key, known)} It takes {takes}.")


def _compare(settings: dict[str, Any]) -> None:
    from recbole_kd.verbs.compare import compare, table

    results = compare(settings)
    print(f"\n{results['dataset']}, test split\n{table(results)}")
    print(f"report: {os.path.join(str(settings.get('output') or 'report'), 'report.html')}")


@dataclass(frozen=True)
class Verb:
    """A word that the command line begins with: what it does, in a line and in full, and the function that does it."""

    summary: str
    details: str
    run: Callable[[dict[str, Any]], None]


VERBS: dict[str, Verb] = {
    "train": Verb("get the teacher, distil, evaluate, save (the default)", "", _train),
    "list": Verb(
        "students, teachers, distillers, recipes and datasets, a line each",
        "  --kind=students|teachers|distillers|recipes|datasets   only these\n"
        "  --data_path=DIR                                        where to look for datasets (dataset/)",
        _list,
    ),
    "evaluate": Verb(
        "a checkpoint on its dataset, full ranking",
        "  --checkpoint=FILE     a student, teacher or baseline that recbole-kd saved\n"
        "  --data_path=DIR       the folder above the dataset's\n"
        "  --topk=[5,10] --metrics=[Recall,NDCG]   and any other RecBole key\n"
        "  --ray_address=auto    score users by the workers of a Ray cluster; local: by this machine's cores\n"
        "  --result_file=FILE    also write the metrics (JSON) there",
        _evaluate,
    ),
    "prepare": Verb(
        "download a public dataset and convert it to RecBole's atomic files",
        "  --dataset=gowalla\n"
        "  --data_path=DIR       the folder that gets DIR/gowalla/gowalla.inter (dataset/)\n"
        "  --source=FILE_OR_URL  the raw file, where it is already at hand or elsewhere\n"
        "  --minimum=10          interactions that every user and item must have",
        _prepare,
    ),
    "analyse": Verb(
        "what a student took over from its teacher: spectrum, smoothing, experts, gains, compression",
        "  --student=FILE --teacher=FILE   checkpoints on one dataset and split\n"
        "  --output=DIR          the folder that gets a picture (PNG) and a table (CSV) of each part\n"
        "  --baseline=FILE       a plain student to stand beside the distilled one\n"
        "  --parts=spectrum,smoothing,experts,gain,compression   only these (those that the models allow)\n"
        "  --bands=11            bands of frequency, an odd number\n"
        "  --groups=20           groups of users by taste\n"
        "  --metric=ndcg@20      of gains and compression (the one that epochs are chosen by)\n"
        "  --data_path=DIR       the folder above the dataset's",
        _analyse,
    ),
    "report": Verb(
        "rewrite a comparison's tables, page and pictures from its results.json",
        "  --results=FILE        the results.json that compare wrote\n"
        "  --output=DIR          the folder that gets the report (the one of the results)",
        _report,
    ),
    "recommend": Verb(
        "the best items of users, in original ids, as CSV or JSON lines",
        "  --checkpoint=FILE     a student, teacher or baseline that recbole-kd saved\n"
        "  --users=196,186       original ids; @FILE with an id a line (@- is standard input); all\n"
        "  --k=20                items per user\n"
        "  --format=csv|jsonl\n"
        "  --output=FILE         instead of standard output\n"
        "  --exclude_seen=true   false: what a user has seen can be recommended again\n"
        "  --seen=train          train+valid, or all: the splits whose items a user has seen\n"
        "  --data_path=DIR       the folder above the dataset's",
        _recommend,
    ),
    "tune": Verb(
        "search a model's settings with Ray Tune, choosing on validation",
        "  --model=NAME --dataset=NAME      and any setting that train takes, the same for all trials\n"
        "  --params_file=FILE.hyper         the search space (by default the model's and its distillers')\n"
        "  --trials=50                      configurations in all\n"
        "  --prune=false                    train every trial to its end (ASHA stops those that are behind)\n"
        "  --grace_epochs=N                 epochs that every trial is trained for (a ninth of --epochs)\n"
        "  --cpus=N --cpus_per_trial=1      cores of all trials together, and of one\n"
        "  --gpus_per_trial=0.25            share of a GPU\n"
        "  --ray_address=auto               join a running Ray cluster\n"
        "  --output=FOLDER                  trials.csv, trials.png, best.yaml, result.json (CHECKPOINT_DIR/tune/...)\n"
        "  --result_file=FILE               also write the result (JSON) there\n"
        "The same command again goes on with a search that was interrupted.",
        _tune,
    ),
    "compare": Verb(
        "several models and recipes, several seeds, one dataset: means, tests, gains, costs, report",
        "  --models=BPR,DERRDStudent --dataset=NAME   and any other setting, for all models that read it\n"
        "  --seeds=5             number of seeds, from --seed=2020 on, or a list of them; the split is --split_seed's\n"
        "  --tune_trials=20      first choose each model's settings on validation, with as many trials for every one\n"
        "  --output=report       results.json, per-user metrics, report\n"
        "  --parallel=2          so many runs at a time, through Ray\n"
        "  --config_files=FILE   YAML; section models: {LABEL: {model: NAME, KEY: VALUE}} has a model's own settings\n"
        "The same command again goes on with an interrupted comparison; a changed setting repeats what it changes.",
        _compare,
    ),
    "export": Verb(
        "a student alone, for serving with numpy: vectors, ids, an index",
        "  --checkpoint=FILE     a model whose scores are inner products (BPR, LightGCN, SimRecStudent, ...)\n"
        "  --output=DIR          the folder that is made\n"
        "  --index=faiss         also an approximate index, with its measured recall and latency\n"
        "  --seen=train          train+valid, or all: the splits whose items are not recommended again\n"
        "  --overwrite=true      replace an export that is there\n"
        "  --data_path=DIR       the folder above the dataset's",
        _export,
    ),
}
