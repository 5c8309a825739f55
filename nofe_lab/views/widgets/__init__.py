"""Interactive versions of the plots: anywidgets whose JavaScript is part of the package.

Each keeps its state in traits that a program can read and set, works with the keyboard, and shows a
picture of its state where no kernel runs.
"""

from nofe_lab.views.widgets.board import SpecialtyBoard
from nofe_lab.views.widgets.confusion import ConfusionExplorer
from nofe_lab.views.widgets.evolution import EvolutionPlayer
from nofe_lab.views.widgets.explorer import SpecialtyExplorer
from nofe_lab.views.widgets.inspector import PredictionInspector
from nofe_lab.views.widgets.live import LiveTraining
from nofe_lab.views.widgets.relabel import RelabelList

__all__ = [
    "ConfusionExplorer",
    "EvolutionPlayer",
    "LiveTraining",
    "PredictionInspector",
    "RelabelList",
    "SpecialtyBoard",
    "SpecialtyExplorer",
]
