"""Views: plot functions (data in, Figure out), tables, and the widgets over them.

>>> from nofe_lab.views import SpecialtyBrowser, plots
>>> plots.plot_confusion(predictions.confusion, specialties)
"""

from nofe_lab.views import plots, tables
from nofe_lab.views.widgets import SpecialtyBrowser

__all__ = ["SpecialtyBrowser", "plots", "tables"]
