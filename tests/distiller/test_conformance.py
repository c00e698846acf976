"""Every distiller passes the conformance suite on every backbone that it supports."""

from __future__ import annotations

from recbole_kd.distiller.simrec import SimRecDistiller
from recbole_kd.testing import DistillerConformance

#: Sizes that fit 48 users and 40 items.
FEW = {"triplets": 200}


class TestSimRec(DistillerConformance):
    distiller = SimRecDistiller
    options = FEW

    # L1's triplets are drawn for each batch; the same draw is made for the doubled one.


class TestSimRecAuthorsReading(DistillerConformance):
    distiller = SimRecDistiller
    options = {**FEW, "space": "input", "gradient_similarity": "cosine"}
