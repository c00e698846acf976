"""What Ray does, in the only part of the package that imports it.

Search for a model's settings on the validation split (Ray Tune), and shards of ranked lists and of evaluation.
"""

from recbole_kd.verbs.tune.search import evaluate_winner, search
from recbole_kd.verbs.tune.space import Domain, default_space, parse_space, read_space

__all__ = ["Domain", "default_space", "evaluate_winner", "parse_space", "read_space", "search"]
