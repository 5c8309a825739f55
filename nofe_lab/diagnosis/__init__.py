"""Looks at what any classifier confuses, without training: `nofe_lab.look`.

tables reads predictions, networks runs a module, report holds what follows from them; labels lists
images that may be labelled wrongly (`nofe_lab.relabel`).  The room is not called look, because
importing ``nofe_lab.look`` would put a module in the place of the function of that name.
"""

from nofe_lab.diagnosis.labels import relabel
from nofe_lab.diagnosis.report import Look, look

__all__ = ["Look", "look", "relabel"]
