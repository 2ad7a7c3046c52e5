"""How the documentation site is made, before Zensical builds it: `make docs`.

Pages are files of `docs/`. What they show of the code is made here, at each build: the live curve
from the shipped pair's recorded answers, the tables of what was measured from the result files of
`experiments/`, the command line from `ebjr --help`.
"""
