"""Help, versions, completion and tables for docs/, made from the verbs' options."""

from __future__ import annotations

import platform
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from recbole_kd.experiment.known_keys import known_keys
from recbole_kd.options import Described, described
from recbole_kd.verbs.options import VERBS, VerbOptions

__all__ = ["completion", "entries", "markdown", "overview", "usage", "versions"]

_OVERVIEW = """\
recbole-kd: knowledge distillation for recommender systems, on RecBole.

  recbole-kd [VERB] --key=value ...        (or: python run_recbole_kd.py [VERB] --key=value ...)

An experiment has three parts:

  --model=STUDENT       a recipe (SimRecStudent) or any RecBole recommender (BPR, LightGCN, NeuMF, ...)
  --teacher=TEACHER     another recommender, trained first and kept; --teacher.checkpoint=FILE gives a trained one
  --distill=DISTILLERS  distillers, such as simrec; a recipe is a preset of all three

Verbs (recbole-kd VERB --help lists the options of each):
{verbs}

Settings: every RecBole key works (--epochs=50 --learning_rate=1e-3 --topk=[10,20]), in YAML files too
(--config_files="a.yaml b.yaml"). Dots reach into sections: --teacher.embedding_size=64 --simrec.prediction_weight=1.
Later sources win: RecBole's defaults, properties/, YAML files, the command line. `--key value` is accepted as well.

Examples:
  recbole-kd --model=SimRecStudent --dataset=ml-100k
  recbole-kd --model=SimRecStudent --dataset=yelp-simrec --data_path=DIR --teacher=LightGCN --teacher.embedding_size=32
  recbole-kd list --kind=distillers --name=rrd
  recbole-kd prepare --dataset=gowalla
  recbole-kd evaluate --checkpoint=saved/FILE.pth --topk=[5,10]

Exit codes: 0 done, 1 an error in the program, 2 wrong input (one line says what), 130 interrupted.
"""
_MODELS_OWN = """\
A model's own settings (embedding_size, n_layers, ...):   recbole-kd list --kind=students --name=MODEL
A distiller's options (--rrd.weight=0.1):                 recbole-kd list --kind=distillers --name=NAME
A recipe's presets:                                       recbole-kd list --kind=recipes --name=RECIPE"""


def overview() -> str:
    """``recbole-kd --help``."""
    return _OVERVIEW.format(verbs="\n".join(f"  {verb:<10} {kind.summary}" for verb, kind in VERBS.items()))


def usage(verb: str) -> str:
    """``recbole-kd VERB --help``: every option and setting of the verb."""
    kind = VERBS[verb]
    parts = [f"recbole-kd {verb} --key=value ...", f"{kind.summary[0].upper()}{kind.summary[1:]}.", entries(_own(kind))]
    if verb == "train":
        parts += [f"{title}\n{entries(group)}" for title, group in known_keys()]
        parts.append(_MODELS_OWN)
    elif kind.settings is not None:
        parts.append("Any setting of a run can be given too; recbole-kd train --help lists them.")
    return "\n\n".join([*parts, *([kind.note] if kind.note else [])])


def _own(kind: type[VerbOptions]) -> Iterator[Described]:
    """The verb's options, then the settings that its help shows."""
    yield from described(kind)
    settings = {one.name: one for _, group in known_keys() for one in group}
    yield from (settings[name] for name in kind.settings or ())


def entries(options: Iterable[Described]) -> str:
    """Options as lines: the flag with its default, its meaning, its values."""
    width = max(60, min(120, shutil.get_terminal_size((110, 24)).columns))
    lines = []
    for one in options:
        text = f"{one.help} [{one.range}]" if one.range else one.help
        head = f"  {one.flag}"
        if len(head) > 30:
            lines.append(head)
            head = ""
        indent = " " * 32
        lines += textwrap.wrap(
            text, width, initial_indent=f"{head:<32}", subsequent_indent=indent, break_on_hyphens=False
        ) or [head]
    return "\n".join(lines)


def markdown(verb: str) -> str:
    """The tables of options of a verb's page in docs/: its own, and for train every setting of a run."""
    parts = ["\n".join(_rows(_own(VERBS[verb])))]
    if verb == "train":
        parts += [f"**{title}**\n\n" + "\n".join(_rows(group)) for title, group in known_keys()]
    return "\n\n".join(parts)


def _rows(options: Iterable[Described]) -> Iterator[str]:
    yield "| option | meaning | takes |\n|---|---|---|"
    for one in options:
        cells = (f"`{one.flag}`", one.help, one.range)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def versions() -> str:
    """``recbole-kd --version``: versions of recbole-kd and of the packages that affect results."""
    from importlib import metadata  # imported late, so that help is fast

    found = []
    for name in ("recbole-kd", "recbole", "torch", "numpy"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return "\n".join([*found, f"python {platform.python_version()}"])


# Completion. argcomplete and shtab need an argparse parser, which would be a second table of options, and argcomplete
# starts Python at every press of the key. So completion is a script that contains all words.

_BASH = """\
# bash completion for recbole-kd: eval "$(recbole-kd completion)"
_recbole_kd() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" word verb=train flags values
    local settings="{settings}"
    word="${{line##* }}"
    case "${{COMP_WORDS[1]}}" in {verbs}) verb="${{COMP_WORDS[1]}}" ;; esac
    case "$verb" in
{flags}
    esac
    case "$verb ${{word%%=*}}" in
{values}
    esac
    if [[ $word == --*=* ]]; then
        # bash splits words at "=", so only the part after it is completed.
        COMPREPLY=($(compgen -W "$values" -- "${{word#*=}}"))
    elif [[ $word == --* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
        compopt -o nospace
    elif [[ $COMP_CWORD == 1 ]]; then
        COMPREPLY=($(compgen -W "{words}" -- "$word"))
    fi
}}
complete -o default -F _recbole_kd recbole-kd
"""


def completion(shell: str) -> str:
    """A script for bash, or for zsh by way of its ``bashcompinit``, that completes verbs, options and choices."""
    flags: list[str] = []
    values: list[str] = []
    settings = [one for _, group in known_keys() for one in group]
    for verb, kind in VERBS.items():
        more = "" if kind.settings is None else " $settings"
        flags.append(f'        {verb}) flags="{_flags(described(kind))}{more}" ;;')
        values += _values(f'"{verb} "', described(kind))
    script = _BASH.format(
        verbs="|".join(VERBS),
        settings=_flags(settings),
        flags="\n".join(flags),
        values="\n".join([*values, *_values("*", settings)]),
        words=" ".join([*VERBS, "help"]),
    )
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _flags(options: Iterable[Described]) -> str:
    return " ".join(f"--{one.name}=" for one in options)


def _values(verb: str, options: Iterable[Described]) -> Iterator[str]:
    """A case for each option that has choices."""
    for one in options:
        choices = ["true", "false"] if one.expected == "true or false" else one.expected.split(" | ")
        if len(choices) > 1:
            yield f'        {verb}--{one.name}) values="{" ".join(choices)}" ;;'
