"""Generate the sources of the documentation site, which Zensical then builds: `make docs`.

Pages are files of `docs/`. Each build generates what they show of the code: the live curve from the
shipped pair's recorded answers, the tables of measurements from the result files of `experiments/`,
and the command line's reference from `ebjr --help`.
"""
