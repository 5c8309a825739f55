"""The study: does a network of experts help, when, and why?  Not in the wheel.

`questions` lists the arms and what is asked of them, `queue` makes the rows, `answers` keeps what
each network answered for each image, `tables` and `readme` turn rows into the tables and figures of
README and docs.
"""

from nofe_lab.study.published import paper_rows

__all__ = ["paper_rows"]
