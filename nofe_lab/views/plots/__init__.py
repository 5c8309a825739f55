"""Data in, Figure out: the figures of the workbench, one file a subject.

Figures have three layers.  `nofe_lab.evaluation`, `nofe_lab.statistics` and `nofe_lab.specialties`
*compute* plain arrays and tables; a ``plot_*`` function *draws* them; a widget
(`nofe_lab.views.widgets`) lets the reader *choose* what is drawn.  Tests, scripts and notebooks can
therefore make every figure that a widget shows.

Every function returns a closed `matplotlib.figure.Figure`: as the last expression of a cell it is
shown once; ``figure.savefig(path)`` writes it to a file.  Specialty k has the same colour in all
figures (in `plot_history`, colours stand for networks).  Class names are never parsed as formulas;
names that are too long are cut in the middle.  The font in matplotlib's settings comes first;
characters that no installed font has are reported once.
"""

from nofe_lab.views.plots.calibration import (
    plot_calibration,
    plot_coverage,
    plot_reliability,
)
from nofe_lab.views.plots.comparison import plot_comparison, plot_gained_lost, plot_per_specialty
from nofe_lab.views.plots.confusion import (
    SCALES,
    mistake_shares,
    plot_class,
    plot_confusion,
    plot_images,
    plot_inside_share,
)
from nofe_lab.views.plots.cost import plot_conditional, plot_front, plot_speed
from nofe_lab.views.plots.inspection import inspected_maps, plot_inspection
from nofe_lab.views.plots.specialties import (
    plot_crosstab,
    plot_samples,
    plot_specialties,
)
from nofe_lab.views.plots.style import (
    Colour,
    axes_inches,
    canvas,
    plot_words,
    specialty_colours,
)
from nofe_lab.views.plots.text import fitted
from nofe_lab.views.plots.training import (
    alluvial,
    plot_affinity,
    plot_evolution,
    plot_history,
    shown_maps,
)

__all__ = [
    "SCALES",
    "Colour",
    "alluvial",
    "axes_inches",
    "canvas",
    "fitted",
    "inspected_maps",
    "mistake_shares",
    "plot_affinity",
    "plot_calibration",
    "plot_class",
    "plot_comparison",
    "plot_conditional",
    "plot_confusion",
    "plot_coverage",
    "plot_crosstab",
    "plot_evolution",
    "plot_front",
    "plot_gained_lost",
    "plot_history",
    "plot_images",
    "plot_inside_share",
    "plot_inspection",
    "plot_per_specialty",
    "plot_reliability",
    "plot_samples",
    "plot_specialties",
    "plot_speed",
    "plot_words",
    "shown_maps",
    "specialty_colours",
]
