"""The earlier name of `ebjr.data.preprocess`, kept for compatibility."""

from ebjr.data.preprocess import Preprocess as Preprocess
from ebjr.data.preprocess import prepared as prepared
