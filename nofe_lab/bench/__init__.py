"""All timing: the speed of networks and of widgets.  Not in the wheel."""

from nofe_lab.bench.speed import Bench
from nofe_lab.bench.targets import RESULTS, against_targets, compared, read

__all__ = ["RESULTS", "Bench", "against_targets", "compared", "read"]
