"""Every distiller passes the conformance suite once on every backbone that it supports.

A second class of the same distiller is for options that lead another way through it.
"""

from __future__ import annotations

from recbole_kd.distiller.cd import CDDistiller
from recbole_kd.distiller.dcd import DCDDistiller
from recbole_kd.distiller.de import DEDistiller
from recbole_kd.distiller.fitnet import FitNetDistiller
from recbole_kd.distiller.freqd import FreqDDistiller
from recbole_kd.distiller.ftd import FTDDistiller
from recbole_kd.distiller.htd import HTDDistiller
from recbole_kd.distiller.ir_rrd import IRRRDDistiller
from recbole_kd.distiller.kd import KDDistiller
from recbole_kd.distiller.phr import PHRDistiller
from recbole_kd.distiller.rd import RDDistiller
from recbole_kd.distiller.rkd import RKDDistiller
from recbole_kd.distiller.rrd import RRDDistiller
from recbole_kd.distiller.simrec import SimRecDistiller
from recbole_kd.distiller.unkd import UnKDDistiller
from recbole_kd.registry import DISTILLERS
from recbole_kd.testing import DistillerConformance

# Sizes that fit 48 users and 40 items, of which a user has observed 8.
BY_SCORE = ("BPR", "LightGCN", "SimpleX", "NeuMF", "SimRecStudent")
BY_VECTOR = ("BPR", "LightGCN", "SimpleX", "SimRecStudent")


class TestSimRec(DistillerConformance):
    distiller = SimRecDistiller
    options = {"triplets": 200}


class TestSimRecAuthorsReading(DistillerConformance):
    distiller = SimRecDistiller
    options = {"triplets": 200, "space": "input", "gradient_similarity": "cosine"}


class TestRD(DistillerConformance):
    distiller = RDDistiller
    backbones = BY_SCORE
    options = {"dynamic_samples": 15}


class TestRDWeighedByTheStudentsRanks(DistillerConformance):
    distiller = RDDistiller
    options = {"dynamic_samples": 15, "start_epoch": 0}


class TestCD(DistillerConformance):
    distiller = CDDistiller
    backbones = BY_SCORE
    options = {"pool": 20}


class TestCDWithTheStudentsGuide(DistillerConformance):
    distiller = CDDistiller
    options = {"pool": 20, "guide": "student"}


class TestRRD(DistillerConformance):
    distiller = RRDDistiller
    backbones = BY_SCORE
    options = {"weight": 1.0, "pool": 10, "interesting": 5, "uninteresting": 5}


class TestIRRRD(DistillerConformance):
    distiller = IRRRDDistiller
    backbones = BY_SCORE
    options = {"weight": 1.0, "item_weight": 1.0, "pool": 10, "interesting": 5, "uninteresting": 5}


class TestUnKD(DistillerConformance):
    distiller = UnKDDistiller
    backbones = BY_SCORE
    options = {"pool": 30, "groups": 2, "pairs": 4}


class TestKD(DistillerConformance):
    distiller = KDDistiller
    backbones = BY_SCORE


class TestDCD(DistillerConformance):
    distiller = DCDDistiller
    backbones = BY_SCORE
    options = {"weight": 1.0, "pool": 20, "interesting": 5, "uninteresting": 5}


class TestFitNet(DistillerConformance):
    distiller = FitNetDistiller
    backbones = BY_VECTOR


class TestDE(DistillerConformance):
    distiller = DEDistiller
    backbones = BY_VECTOR
    options = {"experts": 3}


class TestDEOfPairs(DistillerConformance):
    distiller = DEDistiller
    options = {"experts": 3}
    backbones = ("NeuMF", "BPR")
    teacher = "NeuMF"


class TestFitNetOfPairs(DistillerConformance):
    distiller = FitNetDistiller
    backbones = ("NeuMF", "LightGCN")
    teacher = "NeuMF"


class TestDEOfPairsFromVectorsOfUsersAndItems(DistillerConformance):
    distiller = DEDistiller
    options = {"experts": 3}
    backbones = ("NeuMF",)


class TestFreqD(DistillerConformance):
    distiller = FreqDDistiller
    backbones = BY_VECTOR


class TestFreqDOnNeighbourGraphs(DistillerConformance):
    distiller = FreqDDistiller
    options = {"graph": "knn"}


class TestFreqDOfRelations(DistillerConformance):
    distiller = FreqDDistiller
    options = {"relations": True}


class TestFreqDAsInTheAuthorsCode(DistillerConformance):
    distiller = FreqDDistiller
    options = {"graph": "knn", "projector": "mlp", "projectors": 2, "dropout": 0.2, "edge_dropout": 0.5}


class TestFitNetWithPerceptrons(DistillerConformance):
    distiller = FitNetDistiller
    options = {"projector": "mlp", "dropout": 0.2, "distance": "cosine"}


class TestPHR(DistillerConformance):
    distiller = PHRDistiller
    backbones = BY_VECTOR


class TestFTD(DistillerConformance):
    distiller = FTDDistiller
    backbones = BY_VECTOR


class TestHTD(DistillerConformance):
    distiller = HTDDistiller
    backbones = BY_VECTOR
    options = {"experts": 3}


class TestRKD(DistillerConformance):
    distiller = RKDDistiller
    backbones = BY_VECTOR


def test_every_distiller_of_general_models_is_here_and_no_case_twice() -> None:
    suites = [kind for kind in DistillerConformance.__subclasses__() if kind.__module__ == __name__]
    assert {suite.distiller.name for suite in suites} == set(DISTILLERS) - {"dkd"}, "dkd is for sequences alone"
    cases = [
        (suite.distiller.name, sorted(suite.options.items()), backbone, suite.teacher)
        for suite in suites
        for backbone in suite.backbones
    ]
    assert not [case for case in cases if cases.count(case) > 1]
