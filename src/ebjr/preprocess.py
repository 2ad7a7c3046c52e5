"""`ebjr.data.preprocess`, under the name that it had before there was `ebjr.data`."""

from ebjr.data.preprocess import Preprocess as Preprocess
from ebjr.data.preprocess import prepared as prepared
