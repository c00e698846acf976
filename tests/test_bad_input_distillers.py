"""What a distiller cannot do with its options, the data or a file of ranks: one line that names the setting, and 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recbole_kd.cli import main
from recbole_kd.testing import known_answer_settings, write_known_answer

#: 48 users and 40 items; a user has observed 8 in training.
RRD = ["--distill=rrd", "--rrd.pool=10", "--rrd.interesting=5", "--rrd.uninteresting=5"]
BAD: dict[str, tuple[list[str], str]] = {
    "K of the whole catalogue": (["--distill=rrd", "--rrd.pool=41"], r"rrd\.pool=41 is more than the 40 items there are; lower rrd\.pool"),
    "K of rd": (["--distill=rd", "--rd.interesting=33"], r"rd\.interesting=33: 48 of 48 users have fewer unobserved items, the least 32; lower rd\.interesting"),
    "samples of rd": (["--distill=rd", "--rd.dynamic_samples=33"], r"rd\.dynamic_samples=33: .* lower rd\.dynamic_samples"),
    "K of kd": (["--distill=kd", "--kd.items=33"], r"kd\.items=33: .* lower kd\.items"),
    "K of kd, by the student": (["--distill=kd", "--kd.items=33", "--kd.guide=student"], r"kd\.items=33: .* lower kd\.items"),
    "pool of cd": (["--distill=cd", "--cd.pool=33"], r"cd\.pool=33: .* lower cd\.pool"),
    "pool of dcd": (["--distill=dcd", "--dcd.pool=40"], r"dcd\.pool=40: .* lower dcd\.pool"),
    "pool of unkd": (["--distill=unkd", "--unkd.pool=1000"], r"unkd\.pool=1,000 is more than the 40 items"),
    "a graph of times": ([*RRD, "--learner=sevo_adam"], r"The consecutive graph needs the time .* column 'timestamp' is not loaded"),
    "a graph of a category": ([*RRD, "--learner=sevo_adam", "--sevo.graph=category"], r"--sevo\.category=class is not a token column"),
    "users of an item": (["--distill=ir_rrd", "--ir_rrd.pool=32", "--ir_rrd.interesting=5", "--ir_rrd.uninteresting=1"], r"ir_rrd\.(uninteresting|pool)="),
    "L below the pool": (["--distill=rrd", "--rrd.pool=30", "--rrd.interesting=5", "--rrd.uninteresting=3"], r"rrd\.uninteresting=3 below the 30 of rrd\.pool: .* lower rrd\.uninteresting or rrd\.pool"),
    "how the student's own list counts": (["--distill=kd", "--kd.guide=student", "--kd.decay=10"], r"kd\.decay weights the teacher's items, but kd\.guide=student lists the student's items"),
    "a factor of 0": (["--distill=cd", "--cd.consistency=0"], r"cd\.consistency=0 is out of range; expected above 0"),
    "L -1": (["--distill=rrd", "--rrd.uninteresting=-1"], r"rrd\.uninteresting=-1 is out of range; expected at least 0"),
    "K 0": (["--distill=rd", "--rd.interesting=0"], r"rd\.interesting=0 is out of range; expected at least 1"),
    "K above K'": (["--distill=rrd", "--rrd.pool=10"], r"rrd\.interesting=40 items cannot be drawn from a list of rrd\.pool=10"),
    "L above K'": (["--distill=dcd", "--dcd.pool=10", "--dcd.interesting=5"], r"dcd\.uninteresting=40 items cannot be drawn from a list of dcd\.pool=10"),
    "n above K'": (["--distill=cd", "--cd.pool=5"], r"cd\.samples=10 items cannot be drawn from a list of cd\.pool=5"),
    "a group without two items": (["--distill=unkd", "--unkd.pool=30", "--unkd.groups=25"], r"unkd\.groups=25: group \d+ of them holds [01] items, but a pair needs two; lower unkd\.groups"),
    "more groups than pairs": (["--distill=unkd", "--unkd.groups=31"], r"unkd\.pairs=30 is too few for one pair in each of unkd\.groups=31"),
    "experts 0": (["--distill=de", "--de.experts=0"], r"de\.experts=0 is out of range; expected at least 1"),
    "groups 0": (["--distill=htd", "--htd.experts=0"], r"htd\.experts=0 is out of range; expected at least 1"),
    "temperature 0": (["--distill=kd", "--kd.temperature=0"], r"kd\.temperature=0 is out of range; expected above 0"),
    "a rising filter": (["--distill=freqd", "--freqd.filter=[1,0.5]"], r"freqd\.filter=\[1\.0, 0\.5\].*increases"),
    "a filter that rises again": (["--distill=freqd", "--freqd.filter=[1,-1.6,0.6]"], r"freqd\.filter=.*increases near frequency"),
    "a filter of nothing": (["--distill=freqd", "--freqd.filter=[0,0]"], r"freqd\.filter=\[0\.0, 0\.0\] removes every frequency"),
    "a filter's name": (["--distill=freqd", "--freqd.filter=quadratic"], r"freqd\.filter='quadratic' is not a list; expected a list"),
    "a coefficient's name": (["--distill=freqd", "--freqd.filter=[1,a]"], r"freqd\.filter='a' is not a number"),
    "an unknown coefficient": (["--distill=freqd", "--freqd.beta=0.3"], r"Unknown option 'freqd\.beta'.*has: .*alpha, filter"),
    "alpha above a half": (["--distill=freqd", "--freqd.alpha=0.7"], r"freqd\.alpha=0\.7 is out of range; expected at least 0 and at most 0\.5"),
    "a scores' file for vectors": (["--distill=de", "--teacher.ranks={ranks}"], r"de reads a vector .* the file ranks\.csv has none"),
    "too many clusters": ([*RRD, "--teacher=NCL", "--teacher.num_clusters=41"], r"--teacher\.num_clusters=41 is more than the 40 users or items"),
    "too small for convolutions": ([*RRD, "--teacher=ConvNCF", "--teacher.embedding_size=16"], r"--teacher\.embedding_size=16 is too small for ConvNCF's cnn_kernels"),
    "a filter beyond float32": (["--distill=freqd", "--freqd.filter=[1.0e+200,-1.0e+199]"], r"freqd\.filter=.* has a coefficient beyond 1e\+06"),
    "a small filter that rises": (["--distill=freqd", "--freqd.filter=[1.0e-5,1.0e-5]"], r"freqd\.filter=.*increases near frequency"),
    "a number beyond all others": (["--distill=rrd", "--rrd.pool=1e400"], r"rrd\.pool=inf is not a whole number"),
    "a number beyond what tensors count": (["--distill=rd", f"--rd.dynamic_samples=1{'0' * 20}"], r"rd\.dynamic_samples=10+ is out of range"),
    "a weight beyond floats": (["--distill=rrd", f"--rrd.weight=1{'0' * 400}"], r"rrd\.weight=10+\.\.\.0+ is out of range"),
    "a pool that no memory holds": (["--distill=cd", "--cd.pool=100000000000"], r"cd\.pool=100,000,000,000 is more than the 40 items"),
    "groups that no memory holds": (["--distill=unkd", "--unkd.pool=30", "--unkd.groups=1000000000000", "--unkd.pairs=1000000000000"], r"unkd\.groups=1,000,000,000,000 is more than the 40 items"),
    "experts that no memory holds": (["--distill=de", "--de.experts=100000000000"], r"not enough memory.*; lower .*experts"),
    "emphasis below any rank": (["--distill=rrd", "--rrd.emphasis=1e-40"], r"rrd\.emphasis=1e-40 is out of range; expected at least 0\.001"),
    "epochs without end": (["--distill=kd", "--stopping_step=1e400"], r"--stopping_step=inf; expected a whole number"),
    "a score beyond 32 bits": (["--distill=kd", "--kd.items=10", "--teacher.ranks={large}"], r"--teacher\.ranks=.*: the score in row 2 is not a finite number of 32 bits"),
    "vectors of a recipe's backbone": (["--model=FreqDStudent", "--student=NeuMF"], r"freqd reads a vector for each user and each item of the student; NeuMF has none\. Use a distiller that does not \(.*\) or another student \(--student=BPR\|LightGCN\|SimpleX\)"),
    "a guide that the file is not": (["--distill=kd", "--kd.items=10", "--kd.guide=student", "--teacher.ranks={scored}"], r"kd reads scores of single users .* With its default options .* or use another teacher \(--teacher=BPR"),
    "a setting of a teacher from a file": ([*RRD, "--teacher.ranks={ranks}", "--teacher.foo=3"], r"--teacher\.foo is set, but the teacher comes from a file"),
    "a misspelt source": ([*RRD, "--teacher.checkpont=x"], r"needs a teacher; .* --teacher\.checkpont is none of these\. Did you mean 'checkpoint'"),
    "no such file": ([*RRD, "--teacher.ranks=none.csv"], r"--teacher\.ranks=none\.csv: there is no such file"),
    "unknown users": ([*RRD, "--teacher.ranks={unknown}"], r"--teacher\.ranks=.*: 1 of 961 rows name users that the dataset does not have .* such as 'stranger'; drop those rows"),
    "an item twice": ([*RRD, "--teacher.ranks={twice}"], r"--teacher\.ranks=.*: 1 row too many for a user and an item, such as 'u0' and 'i0'"),
    "nobody's list": ([*RRD, "--teacher.ranks={nobody}"], r"--teacher\.ranks=.* lists no unobserved item for any of 48 users of the training split"),
    "K above the file's lists": (["--distill=rrd", "--rrd.pool=25", "--rrd.interesting=5", "--rrd.uninteresting=5", "--teacher.ranks={ranks}"], r"rrd\.pool=25: the file ranks\.csv ranks fewer items for 48 of 48 users, .* lower rrd\.pool or give longer lists"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, with a teacher that the first case trains, and files of ranks."""
    folder = write_known_answer(tmp_path_factory.mktemp("bad"))
    rows = [f"u{user},i{(user + place) % 40}" for user in range(48) for place in range(20)]
    files = {
        "ranks": rows,
        "unknown": [*rows, "stranger,i1"],
        "twice": [*rows, "u0,i0"],
        "nobody": [
            (folder / "known-answer" / "known-answer.train.inter").read_text().split("\n")[1].replace("\t", ",")
        ],
    }
    for name, lines in files.items():
        (folder / f"{name}.csv").write_text("\n".join(["user_id,item_id", *lines]) + "\n")
    (folder / "scored.csv").write_text(
        "\n".join(["user_id,item_id,score", *(f"{row},{-n}" for n, row in enumerate(rows))])
    )
    (folder / "large.csv").write_text("user_id,item_id,score\nu0,i0,1\nu0,i1,1e300\n")
    return folder


def refusal(data_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command line answers with."""
    files = {file.stem: file for file in data_path.glob("*.csv")}
    given = {**known_answer_settings(data_path), "teacher.epochs": 1, "baseline": "none"}
    if not any("--teacher" in word for word in words):
        given["teacher"] = "BPR"
    else:
        del given["teacher.epochs"]
    common = [f"--{key}={value}" for key, value in given.items()]
    model = [] if any("--model" in word for word in words) else ["--model=BPR"]
    assert main([*model, "--dataset=known-answer", *common, *(word.format(**files) for word in words)]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    (line,) = [line for line in captured.err.splitlines() if line.startswith("recbole-kd:")]
    return line


@pytest.mark.parametrize("case", BAD)
def test_one_line_names_the_setting(case: str, data_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = BAD[case]
    line = refusal(data_path, words, capsys)
    assert re.search(message, line), line
    left = [path for path in (data_path / "saved").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} <= {"teachers", "ranks", "data"}, "nothing of the student is written"


@pytest.mark.parametrize(
    "case",
    [
        "a graph of times",
        "K of kd",
        "pool of unkd",
        "L below the pool",
        "users of an item",
        "a group without two items",
    ],
)
def test_lists_that_the_split_cannot_fill_are_refused_before_a_teacher_is_trained(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = BAD[case]
    assert re.search(message, refusal(write_known_answer(tmp_path), words, capsys))
    assert not list((tmp_path / "saved").rglob("*.pth"))


def test_a_user_who_observed_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RecBole's sampler of negatives would say it later, and less of it."""
    folder = write_known_answer(tmp_path)
    files = {part: folder / "known-answer" / f"known-answer.{part}.inter" for part in ("train", "valid", "test")}
    for file in files.values():
        kept = [line for line in file.read_text().splitlines() if not line.startswith("u5\t")]
        everything = [f"u5\ti{item}" for item in range(40)] if file == files["train"] else []
        file.write_text("\n".join([*kept, *everything]) + "\n")
    line = refusal(folder, ["--distill=kd", "--teacher=EASE"], capsys)
    assert "kd.items=20: 1 users are observed with all 40 items" in line
    assert '--user_inter_num_interval="[0,40)"' in line
