"""Views: plot functions (data in, Figure out), tables, and the widgets over them.

>>> from nofe_lab.views import SpecialtyExplorer, plots
>>> plots.plot_confusion(predictions.confusion, specialties)
"""

from nofe_lab.views import plots, tables
from nofe_lab.views.widgets import (
    ConfusionExplorer,
    EvolutionPlayer,
    LiveTraining,
    PredictionInspector,
    RelabelList,
    SpecialtyBoard,
    SpecialtyExplorer,
)

__all__ = [
    "ConfusionExplorer",
    "EvolutionPlayer",
    "LiveTraining",
    "PredictionInspector",
    "RelabelList",
    "SpecialtyBoard",
    "SpecialtyExplorer",
    "plots",
    "tables",
]
